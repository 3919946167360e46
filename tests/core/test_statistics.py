import math

import numpy as np
import pytest

from wmpo_ray.core.statistics import mean_interval, rate_bound, trials_needed, wilson_interval


def t_probability(bound: float, degrees: int) -> float:
    """P(|t| < bound), by Simpson's rule on the density."""
    num = 2000
    x = np.linspace(0, bound, num + 1)
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    density = np.exp(log_norm - (degrees + 1) / 2 * np.log1p(x * x / degrees))
    weights = np.where(np.arange(num + 1) % 2, 4, 2)
    weights[[0, -1]] = 1
    return float(2 * (weights * density).sum() * bound / num / 3)


@pytest.mark.parametrize("degrees", [*range(1, 32), 40, 100, 10_000])
def test_95_percent_of_student_t_lie_within_the_interval_of_a_mean(degrees):
    values = np.arange(degrees + 1.0)
    mean, low, high = mean_interval(list(values))
    scale = values.std(ddof=1) / math.sqrt(len(values))
    assert t_probability((high - mean) / scale, degrees) == pytest.approx(0.95, abs=1e-5)
    assert high - mean == pytest.approx(mean - low)


def test_wilson_bounds_solve_the_score_equation():
    for successes, num in ((1, 10), (52, 128), (127, 128)):
        for bound in wilson_interval(successes, num):
            assert abs(successes / num - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / num))


def test_wilson_stays_in_the_unit_interval_and_mirrors():
    for num in (1, 5, 512):
        for successes in range(0, num + 1, max(1, num // 5)):
            low, high = wilson_interval(successes, num)
            assert 0 <= low <= successes / num <= high <= 1
            mirrored = wilson_interval(num - successes, num)
            assert (1 - high, 1 - low) == pytest.approx(mirrored)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "num"), [(-1, 4), (5, 4)])
def test_impossible_counts_are_refused(successes, num):
    with pytest.raises(ValueError, match=f"successes={successes}.*num={num}"):
        wilson_interval(successes, num)


def test_mean_interval_holds_the_mean_in_95_of_100_experiments():
    samples = np.random.default_rng(0).normal(3.0, 2.0, (4000, 3))
    hits = 0
    for sample in samples:
        mean, low, high = mean_interval(list(sample))
        assert mean == pytest.approx(sample.mean())
        hits += low <= 3.0 <= high
    assert hits / len(samples) == pytest.approx(0.95, abs=0.012)


def test_mean_interval_of_few_values():
    assert mean_interval([0.5]) == (0.5, -math.inf, math.inf)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="empty"):
        mean_interval([])


def test_the_bound_of_a_rate_is_the_one_at_which_so_few_successes_are_as_rare_as_asked():
    """By the definition of Clopper and Pearson: P(at most k of n) is 5% at the bound."""
    for successes, num in ((0, 20), (3, 50), (17, 30)):
        bound = rate_bound(successes, num)
        tail = sum(math.comb(num, k) * bound**k * (1 - bound) ** (num - k) for k in range(successes + 1))
        assert tail == pytest.approx(0.05, rel=1e-6)
    assert rate_bound(0, 0) == rate_bound(7, 7) == 1.0
    with pytest.raises(ValueError, match="successes=3 must lie between 0 and num=2"):
        rate_bound(3, 2)


@pytest.mark.parametrize("rate", [0.9, 0.5, 0.1, 0.05, 0.001])
def test_the_trials_that_show_a_rate_are_the_fewest(rate):
    num = trials_needed(rate)
    assert rate_bound(0, num) <= rate < rate_bound(0, num - 1)
