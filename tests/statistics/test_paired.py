"""Comparisons on the same starts, and of several tasks and seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import comb

from wmpo_ray.statistics.aggregate import iqm, stratified_interval
from wmpo_ray.statistics.paired import Pairs, bootstrap_difference, mcnemar, newcombe_paired_interval
from wmpo_ray.statistics.power import paired_starts_needed

PAIRS = st.builds(Pairs, *[st.integers(0, 30)] * 4)


def correlated(rng: np.random.Generator, num: int, rate_a: float, rate_b: float, share_same: float):
    """Outcomes [num] of A and B; a share of the starts is as hard for both."""
    u, v = rng.random(num), rng.random(num)
    v = np.where(rng.random(num) < share_same, u, v)
    return u < rate_a, v < rate_b


def test_pairs_are_counted_by_outcome():
    a, b = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 1, 0])
    assert Pairs.of(a, b) == (2, 1, 2, 1) and Pairs.of(a, b).difference == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="same starts"):
        Pairs.of(a, b[:3])


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 6), (3, 9), (10, 10), (1, 12)])
def test_mcnemar_is_the_share_of_coin_tosses_at_least_as_extreme(only_a, only_b):
    num = only_a + only_b
    extreme = [k for k in range(num + 1) if abs(k - num / 2) >= abs(only_b - num / 2)]
    exact = sum(comb(num, k, exact=True) for k in extreme) / 2**num
    assert mcnemar(Pairs(7, only_a, only_b, 4)) == pytest.approx(exact) == mcnemar(Pairs(0, only_b, only_a, 0))


@given(PAIRS.filter(lambda pairs: pairs.num > 0))
def test_the_paired_interval_contains_the_difference_and_mirrors(pairs):
    low, high = newcombe_paired_interval(pairs)
    assert -1 - 1e-9 <= low <= pairs.difference <= high <= 1 + 1e-9
    mirrored = Pairs(pairs.both, pairs.only_b, pairs.only_a, pairs.neither)
    assert newcombe_paired_interval(mirrored) == pytest.approx((-high, -low))


@pytest.mark.parametrize("share_same", [0.0, 0.6])
def test_the_paired_interval_covers_the_true_difference_and_pairing_narrows_it(share_same):
    rng, covered, widths = np.random.default_rng(1), 0, []
    for _ in range(600):
        low, high = newcombe_paired_interval(Pairs.of(*correlated(rng, 60, 0.5, 0.65, share_same)))
        covered, widths = covered + (low <= 0.15 <= high), [*widths, high - low]
    assert 0.92 < covered / 600 < 0.99
    assert (np.mean(widths) < 0.28) == (share_same > 0)


def test_without_pairs_there_is_no_interval():
    with pytest.raises(ValueError, match="no pairs"):
        newcombe_paired_interval(Pairs(0, 0, 0, 0))


def test_as_many_starts_as_are_needed_give_the_power_that_was_asked_for():
    """McNemar's exact test is careful, so it has a little less."""
    rng = np.random.default_rng(2)
    a, b = correlated(rng, 400_000, 0.5, 0.6, 0.5)
    num = paired_starts_needed((a & ~b).mean(), (b & ~a).mean())
    found = [mcnemar(Pairs.of(a[i : i + num], b[i : i + num])) < 0.05 for i in range(0, 300 * num, num)]
    assert 0.70 < np.mean(found) < 0.86


def test_resampling_seeds_and_starts_covers_what_both_add_to_the_variance():
    rng, covered = np.random.default_rng(3), 0
    for trial in range(100):
        hardness, effect = rng.normal(0, 0.15, 80), rng.normal(0.1, 0.08, 10)  # of each start, of each seed
        rate_a = np.clip(0.45 + hardness, 0, 1)
        a, b = rng.random((10, 80)) < rate_a, rng.random((10, 80)) < rate_a + effect[:, None]
        low, high = bootstrap_difference(a, b, seed=trial, num_resamples=300)[1:]
        covered += low <= 0.1 <= high
    assert 0.88 <= covered / 100 < 1.0


def test_the_bootstrap_is_seeded_mirrors_and_has_no_width_where_nothing_varies():
    rng = np.random.default_rng(4)
    a, b = rng.random((3, 40)) < 0.4, rng.random((3, 40)) < 0.6
    mean, low, high = bootstrap_difference(a, b, seed=7)
    assert (mean, low, high) == bootstrap_difference(a, b, seed=7) and low < mean < high
    assert bootstrap_difference(b, a, seed=7) == pytest.approx((-mean, -high, -low))
    assert bootstrap_difference(np.zeros((2, 9)), np.ones((2, 9))) == pytest.approx((1.0, 1.0, 1.0))
    wide = bootstrap_difference(np.repeat([[0], [1]], 30, 1), np.repeat([[0], [1]], 30, 1), are_seeds_matched=False)
    assert wide[1:] == pytest.approx((-1.0, 1.0))  # matched, the same seeds cancel out
    assert bootstrap_difference(np.repeat([[0], [1]], 30, 1), np.repeat([[0], [1]], 30, 1)) == pytest.approx((0, 0, 0))


@pytest.mark.parametrize(
    ("shape_a", "shape_b", "matched"),
    [((2, 3), (2, 4), True), ((3,), (3,), True), ((2, 3), (1, 3), True), ((0, 3), (0, 3), False)],
)
def test_outcomes_that_do_not_belong_together_are_an_error(shape_a, shape_b, matched):
    with pytest.raises(ValueError, match="shapes|seeds"):
        bootstrap_difference(np.zeros(shape_a), np.zeros(shape_b), matched)


def test_the_interquartile_mean_ignores_the_outer_quarters():
    assert iqm(np.array([[0, 4, 5], [6, 7, 1000], [-50, 5, 6.0]])) == pytest.approx(np.mean([4, 5, 5, 6, 6]))
    assert iqm(np.arange(8)) == 3.5
    with pytest.raises(ValueError, match="empty"):
        iqm(np.zeros(0))


def test_each_task_keeps_its_runs_in_every_resample():
    """Tasks without spread have no width, however far apart they are; resampled together, they would have one."""
    tasks = [np.full(5, 0.1), np.full(5, 0.5), np.full(5, 0.9)]
    value, low, high = stratified_interval(tasks, num_resamples=200)
    assert value == pytest.approx(low) == pytest.approx(high) == pytest.approx(0.5)
    spread = stratified_interval([task + np.linspace(-0.05, 0.05, 5) for task in tasks], num_resamples=200)
    assert spread[1] < spread[0] < spread[2]
    with pytest.raises(ValueError, match="every task"):
        stratified_interval([np.ones(3), np.ones(0)])
