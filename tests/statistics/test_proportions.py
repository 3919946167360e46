"""Intervals and tests of independent rates: known values, symmetry, coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.statistics.power import paired_starts_needed, starts_needed
from wmpo_ray.statistics.proportions import newcombe_interval, pooled_test

COUNTS = st.integers(1, 60).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num)))


def test_newcombe_gives_the_published_intervals():
    """Newcombe 1998, table II: 56/70 - 48/80 and 10/10 - 0/10."""
    assert newcombe_interval(48, 80, 56, 70) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe_interval(0, 10, 10, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


@given(COUNTS, COUNTS)
def test_newcombe_contains_the_difference_mirrors_and_stays_in_its_range(a, b):
    low, high = newcombe_interval(*a, *b)
    assert -1 - 1e-9 <= low <= b[0] / b[1] - a[0] / a[1] <= high <= 1 + 1e-9
    assert newcombe_interval(*b, *a) == pytest.approx((-high, -low))
    assert newcombe_interval(*a, *b, level=0.01)[0] <= low


@pytest.mark.parametrize(("rate_a", "rate_b"), [(0.5, 0.5), (0.1, 0.3), (0.1, 0.15)])
def test_newcombe_covers_the_true_difference(rate_a, rate_b):
    rng, covered = np.random.default_rng(0), 0
    for a, b in zip(rng.binomial(50, rate_a, 1000), rng.binomial(40, rate_b, 1000), strict=True):
        low, high = newcombe_interval(a, 50, b, 40)
        covered += low <= rate_b - rate_a <= high
    assert 0.93 < covered / 1000 < 0.99


def test_the_pooled_test_grows_more_certain_with_the_difference():
    p_values = [pooled_test(0.5, 100, 0.5 + difference, 100) for difference in (0.0, 0.05, 0.1, 0.2)]
    assert p_values[0] == 1.0 and p_values == sorted(p_values, reverse=True) and p_values[-1] < 0.01


@pytest.mark.parametrize("call", [lambda: newcombe_interval(0, 0, 1, 2), lambda: pooled_test(0.5, 0, 0.5, 3)])
def test_nothing_tried_is_an_error(call):
    with pytest.raises(ValueError, match="num=0"):
        call()


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1])
def test_a_level_outside_of_0_and_1_is_an_error(level):
    with pytest.raises(ValueError, match="level="):
        newcombe_interval(1, 2, 1, 2, level)


@pytest.mark.parametrize(("rate_a", "rate_b"), [(0.5, 0.6), (0.1, 0.3)])
def test_as_many_starts_as_are_needed_give_the_power_that_was_asked_for(rate_a, rate_b):
    num = starts_needed(rate_a, rate_b)
    assert num is not None
    rng = np.random.default_rng(0)
    a, b = rng.binomial(num, rate_a, 2000), rng.binomial(num, rate_b, 2000)
    found = [pooled_test(x / num, num, y / num, num) < 0.05 for x, y in zip(a, b, strict=True)]
    assert 0.76 < np.mean(found) < 0.84


def test_smaller_differences_and_more_power_need_more_starts():
    needed = [starts_needed(0.5, 0.5 + difference) for difference in (0.3, 0.1, 0.02)]
    assert needed == sorted(needed) and starts_needed(0.5, 0.6, power=0.9) > starts_needed(0.5, 0.6)
    assert starts_needed(0.4, 0.4) is None and paired_starts_needed(0.1, 0.1) is None
    # Independent outcomes in pairs differ as often as outcomes of separate starts would.
    assert paired_starts_needed(0.5 * 0.4, 0.5 * 0.6) == pytest.approx(starts_needed(0.5, 0.6), rel=0.02)
    assert paired_starts_needed(0.0, 0.5) >= 12  # 6 that differ: of fewer, no outcome is significant
    with pytest.raises(ValueError, match="shares"):
        paired_starts_needed(0.6, 0.6)
    with pytest.raises(ValueError, match="rates"):
        starts_needed(0.5, 1.5)


def test_the_quantile_of_the_wilson_interval_is_that_of_its_level():
    """The default of the core, which imports no scipy, is the 95% interval."""
    assert wilson_interval(20, 50) == pytest.approx(wilson_interval(20, 50, 1.959964), abs=1e-5)
