"""Curves over the steps of episodes: means, intervals, slopes and crossings where the true values are known."""

import numpy as np
import pytest

from wmpo_ray.statistics.episode_curves import Resamples


def ragged(lengths, values):
    """Values [M, T], NaN from each episode's end on."""
    values = np.array(values, float)
    values[np.arange(values.shape[1])[None] >= np.asarray(lengths)[:, None]] = np.nan
    return values


def test_means_are_over_the_episodes_that_last():
    curve = Resamples(3).curve(ragged([3, 1, 2], [[1, 2, 3], [4, 0, 0], [7, 8, 0]]))
    assert curve.by_step.tolist() == [4, 5, 3]
    assert curve.mean.value == pytest.approx((1 + 2 + 3 + 4 + 7 + 8) / 6)


def test_episodes_that_are_all_alike_leave_no_doubt():
    curve = Resamples(5).curve(np.tile([3.0, 2.0, 1.0], (5, 1)))
    assert curve.mean == pytest.approx((2, 2, 2)) and curve.slope == pytest.approx((-1, -1, -1))
    assert np.allclose(curve.low, curve.by_step) and np.allclose(curve.high, curve.by_step)


def test_an_interval_holds_the_value_and_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for seed in range(200):
        found = Resamples(40, seed, 400).curve(rng.normal(5, 2, (40, 1)) + rng.normal(0, 1, (40, 6))).mean
        assert found.low <= found.value <= found.high
        covered += found.low <= 5 <= found.high
    assert 0.88 <= covered / 200 <= 0.985  # 95%, less what forty episodes lack


def test_episodes_that_leave_do_not_bend_the_slope():
    """Each falls by 1 a step; those that last are the ones that began high, so that the means rise."""
    lengths = np.repeat([4, 12], 10)
    values = ragged(lengths, np.where(lengths == 4, 0, 100)[:, None] - np.arange(12.0))
    curve = Resamples(20).curve(values)
    assert curve.by_step[-1] > curve.by_step[0]
    assert curve.slope == pytest.approx((-1, -1, -1))


def test_nothing_measured_is_no_number():
    curve = Resamples(2).curve(np.full((2, 3), np.nan))
    assert np.isnan([*curve.mean, *curve.slope, *curve.by_step, *curve.low]).all()
    some = Resamples(2).curve(np.array([[1.0, np.nan], [3.0, np.nan]]))
    assert some.by_step[0] == 2 and np.isnan(some.high[1])


def test_a_curve_crosses_its_bound_where_it_is_first_worse():
    resamples, falling = Resamples(4), np.tile(np.arange(9.0, 0, -1), (4, 1))
    assert resamples.crossing(falling, 6.5, True) == (4, 4, 4)
    assert resamples.crossing(-falling, -6.5, False) == (4, 4, 4)
    assert resamples.crossing(falling, 0.5, True) == (None, None, None)
    assert resamples.crossing(falling, np.nan, True) == (None, None, None)


def test_a_crossing_that_only_some_resamples_have_ends_beyond_the_horizon():
    values = np.zeros((10, 5))
    values[:4, 3:] = 1.0
    found = Resamples(10).crossing(values, 0.35, False)
    assert (found.step, found.low, found.high) == (4, 4, None)


def test_one_seed_is_one_answer():
    values = np.random.default_rng(0).normal(0, 1, (20, 4))
    one, same, other = (Resamples(20, seed).curve(values) for seed in (3, 3, 4))
    assert one.mean == same.mean and one.mean != other.mean and one.mean.value == other.mean.value
