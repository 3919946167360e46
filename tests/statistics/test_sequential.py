"""Sequential tests: read after every pair, they decide wrongly no more often than they may."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmpo_ray.statistics.paired import Pairs, mcnemar
from wmpo_ray.statistics.sequential import NUM_BETS, BettingTest, Decision, SpendingTest

OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40)


def decided(test, pairs) -> tuple[Decision, int]:
    """The decision, and after how many pairs it was made."""
    for a, b in pairs:
        if test.add(a, b) is not Decision.UNDECIDED:
            break
    return test.decision, test.num_pairs


def wealth(wins: int, losses: int) -> float:
    bets = (np.arange(NUM_BETS) + 0.5) / NUM_BETS
    return float(np.mean((1 + bets) ** wins * (1 - bets) ** losses))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (12, 7), (3, 9)])
def test_wealth_is_the_mean_over_bets(wins, losses):
    test = BettingTest()
    for pair in [(0, 1)] * wins + [(1, 0)] * losses + [(1, 1), (0, 0)]:
        test.add(*pair)
    assert test.evidence == pytest.approx((wealth(losses, wins), wealth(wins, losses)))


@pytest.mark.parametrize("q", [0.5, 0.4])
def test_betting_decides_wrongly_no_more_often_than_its_level_however_often_it_is_read(q):
    """Exact: the probability that a walk of 300 pairs that differ ever reaches the bound of "B is higher"."""
    mass, crossed = {0: 1.0}, 0.0
    for num in range(1, 301):
        step: dict[int, float] = {}
        for wins, p in mass.items():
            step[wins + 1] = step.get(wins + 1, 0.0) + p * q
            step[wins] = step.get(wins, 0.0) + p * (1 - q)
        out = {wins for wins in step if wealth(wins, num - wins) >= 40}
        crossed += sum(step[wins] for wins in out)
        mass = {wins: p for wins, p in step.items() if wins not in out}
    assert 0 < crossed <= 0.025
    assert q == 0.5 or crossed < 0.003


@pytest.mark.parametrize(("rho", "level"), [(1.0, 0.2), (2.0, 0.2), (3.0, 0.1)])
def test_spending_decides_wrongly_exactly_as_often_as_it_counts(rho, level):
    """All 1,024 courses of 10 pairs that differ, as likely as each other if no policy is better."""
    found = []
    for course in itertools.product((False, True), repeat=10):
        test = SpendingTest(10, level, rho)
        found.append(decided(test, [(not win, win) for win in course])[0])
    wrong = np.mean([decision is not Decision.UNDECIDED for decision in found])
    assert 0 < wrong <= level and found.count(Decision.A_HIGHER) == found.count(Decision.B_HIGHER)
    rest = SpendingTest(10, level, rho)
    for win in (False, True) * 5:
        rest.add(not win, win)
    assert wrong == pytest.approx(1 - rest._mass.sum()) == pytest.approx(2 * rest._spent)


@pytest.mark.parametrize(("rate", "share_same"), [(0.5, 0.0), (0.05, 0.0), (0.9, 0.0), (0.5, 0.7)])
def test_of_equal_policies_few_seem_to_differ_at_any_time(rate, share_same):
    rng, wrong = np.random.default_rng(0), {"betting": 0, "spending": 0}
    for _ in range(200):
        u, v = rng.random(80), rng.random(80)
        v = np.where(rng.random(80) < share_same, u, v)
        pairs = list(zip(u < rate, v < rate, strict=True))
        wrong["betting"] += decided(BettingTest(), pairs)[0] is not Decision.UNDECIDED
        wrong["spending"] += decided(SpendingTest(80), pairs)[0] is not Decision.UNDECIDED
    assert wrong["betting"] / 200 < 0.05 and wrong["spending"] / 200 < 0.08  # at most .05 but for the sample of 200


def test_spending_has_nearly_the_power_of_one_test_at_its_end_and_needs_fewer_pairs():
    rng, fixed, found, used = np.random.default_rng(1), 0, [], []
    for _ in range(200):
        a, b = rng.random(100) < 0.5, rng.random(100) < 0.7
        fixed += mcnemar(Pairs.of(a, b)) < 0.05
        decision, num = decided(SpendingTest(100), zip(a, b, strict=True))
        found.append(decision)
        used.append(num)
    power = found.count(Decision.B_HIGHER) / 200
    assert power > fixed / 200 - 0.1 and Decision.A_HIGHER not in found and np.mean(used) < 80


def test_betting_decides_in_the_end():
    rng = np.random.default_rng(2)
    for _ in range(20):
        decision, num = decided(BettingTest(), zip(rng.random(600) < 0.5, rng.random(600) < 0.7, strict=True))
        assert decision is Decision.B_HIGHER and num < 600


@given(OUTCOMES)
def test_exchanging_the_policies_exchanges_the_decision(pairs):
    other = {Decision.A_HIGHER: Decision.B_HIGHER, Decision.B_HIGHER: Decision.A_HIGHER}
    for make in (BettingTest, lambda: SpendingTest(40, 0.2)):
        (decision, num), swapped = decided(make(), pairs), decided(make(), [(b, a) for a, b in pairs])
        assert swapped == (other.get(decision, decision), num)


@given(OUTCOMES)
def test_pairs_with_equal_outcomes_are_no_evidence(pairs):
    all_pairs, differing = BettingTest(), BettingTest()
    for a, b in pairs:
        all_pairs.add(a, b)
        if a != b:
            differing.add(a, b)
    assert all_pairs.evidence == pytest.approx(differing.evidence)


def test_partial_credit_is_evidence_too():
    rng = np.random.default_rng(3)
    pairs = [(rng.uniform(0, 0.6), rng.uniform(0.4, 1.0)) for _ in range(60)]
    assert decided(BettingTest(), pairs)[0] is Decision.B_HIGHER


def test_what_makes_no_sense_is_an_error():
    with pytest.raises(ValueError, match="level=2"):
        BettingTest(2)
    with pytest.raises(ValueError, match="max_pairs=0"):
        SpendingTest(0)
    with pytest.raises(ValueError, match="scores 0.0 and 5.0"):
        BettingTest().add(0, 5)
    test = SpendingTest(1)
    test.add(True, False)
    with pytest.raises(ValueError, match="pair 2 of max_pairs=1"):
        test.add(True, False)
