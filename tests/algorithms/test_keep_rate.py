"""How many groups to issue: enough, and no more than enough."""

from __future__ import annotations

import math

import pytest

from wmpo_ray.algorithms.keep_rate import STEP, WINDOW, KeepRate


def shortfall(successes: int, trials: int, share: float) -> float:
    """P(Binomial(trials, share) < successes), summed term by term."""
    return math.fsum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(successes))


def judged(admitted: int, rejected: int, update: int = 0) -> KeepRate:
    rate = KeepRate()
    for number in range(admitted + rejected):
        rate.judged(update, number < admitted)
    return rate


@pytest.mark.parametrize("admitted, rejected", [(0, 0), (10, 30), (30, 10), (3, 200)])
@pytest.mark.parametrize("missing", [1, 7, 64])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.99])
def test_the_number_fills_the_batch_with_the_probability_and_one_less_does_not(
    admitted, rejected, missing, probability
):
    rate = judged(admitted, rejected)
    count, share = rate.needed(0, missing, probability), max(1, round(rate.estimate(0) * STEP)) / STEP
    assert count >= missing and 1 - shortfall(missing, count, share) >= probability - 1e-9
    assert count == missing or 1 - shortfall(missing, count - 1, share) < probability + 1e-9


def test_nothing_is_needed_for_a_full_batch_and_no_more_than_is_missing_where_all_are_admitted():
    rate = judged(1000, 0)
    assert rate.needed(0, 0, 0.9) == 0 and rate.needed(0, 5, 0.9) == 5


def test_the_estimate_looks_back_on_a_few_updates():
    rate = judged(50, 0)
    assert KeepRate().estimate(0) == 0.5
    assert rate.estimate(WINDOW) > 0.9 and rate.estimate(WINDOW + 1) == 0.5
