"""How well imagination predicts reality: correlation and order of policies, and calibration of probabilities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NUM_BINS = 10


class Calibration(NamedTuple):
    """`curve`: (mean probability, share that is true, number) of each bin that is not empty."""

    error: float
    curve: list[tuple[float, float, int]]


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's r of two arrays [n]; None of fewer than three pairs, or where one of them is constant."""
    return _coefficient("pearsonr", x, y)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rho of two arrays [n]; None as in `correlation`."""
    return _coefficient("spearmanr", x, y)


def _coefficient(name: str, x: np.ndarray, y: np.ndarray) -> float | None:
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values cannot be paired with {len(y)}")
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    from scipy import stats  # takes 0.7 s, and few processes need it

    return float(getattr(stats, name)(x, y).statistic)


def mean_maximum_rank_violation(predicted: np.ndarray, real: np.ndarray) -> float:
    """The mean over policies of the worst that a wrong order costs: 0 where all pairs are ordered as in reality.

    Of two policies that `predicted` [n] puts in another order than `real` [n] does, the cost is the difference of their
    real success (Li et al. 2024, SIMPLER, Eq. 1-2).
    """
    predicted, real = np.asarray(predicted, float), np.asarray(real, float)
    if not len(real):
        return 0.0
    is_wrong = (predicted[:, None] < predicted) != (real[:, None] < real)
    return float((np.abs(real[:, None] - real) * is_wrong).max(1).mean())


def calibration(probabilities: np.ndarray, truth: np.ndarray, num_bins: int = NUM_BINS) -> Calibration:
    """Expected calibration error over bins of equal width (Guo et al. 2017, Eq. 3), of arrays [n]."""
    probabilities, truth = np.asarray(probabilities, float), np.asarray(truth, bool)
    place = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    curve, error = [], 0.0
    for index in np.unique(place):
        mine = place == index
        mean, rate, num = float(probabilities[mine].mean()), float(truth[mine].mean()), int(mine.sum())
        curve.append((mean, rate, num))
        error += num / len(truth) * abs(mean - rate)
    return Calibration(error, curve)


def agreement_by_step(
    predicted: np.ndarray, predicted_step: np.ndarray, real: np.ndarray, real_step: np.ndarray, horizon: int
) -> np.ndarray:
    """Share [T] of trajectories whose outcome by each step is the real one, see `outcomes_agree`."""
    return outcomes_agree(predicted, predicted_step, real, real_step, horizon).mean(0)


def outcomes_agree(
    predicted: np.ndarray, predicted_step: np.ndarray, real: np.ndarray, real_step: np.ndarray, horizon: int
) -> np.ndarray:
    """Whether the outcome of each trajectory by each step is the real one, [M, T] bool: succeeded by then, or not.

    predicted, real [M] bool; the steps [M] at which each succeeded.
    """
    steps = np.arange(1, horizon + 1)
    imagined = predicted[:, None] & (predicted_step[:, None] <= steps)
    return imagined == (real[:, None] & (real_step[:, None] <= steps))


def safe_horizon(agreement: np.ndarray, bound: float) -> int:
    """Steps before the agreement [T] first falls under a bound; T if it never does."""
    below = np.flatnonzero(np.asarray(agreement) < bound)
    return int(below[0]) if len(below) else len(agreement)
