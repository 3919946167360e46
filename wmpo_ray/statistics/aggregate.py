"""One number for several tasks and seeds, with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import trim_mean

Statistic = Callable[[np.ndarray], float]


def iqm(scores: np.ndarray) -> float:
    """Interquartile mean of all scores, of any shape: the mean of the middle half.

    Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021. Raises
    `ValueError` if there are none.
    """
    if np.size(scores) == 0:
        raise ValueError("scores is empty: an interquartile mean needs at least 1 score")
    return float(trim_mean(np.ravel(scores), 0.25))


def stratified_interval(
    tasks: Sequence[np.ndarray],
    statistic: Statistic = iqm,
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.05,
) -> tuple[float, float, float]:
    """A statistic of the scores of all tasks and its percentile interval, as (value, low, high).

    tasks: for each task the scores [S] of its runs; each task's runs are resampled among themselves, so that no task
    disappears from a resample (Agarwal et al., section 4.1). With one run of each task there is nothing to resample and
    the interval has no width. Raises `ValueError` if there are no tasks or one of them has no runs.
    """
    scores = [np.asarray(task, float).ravel() for task in tasks]
    if not scores or not all(len(task) for task in scores):
        raise ValueError(f"runs of each task: {[len(task) for task in scores]}; every task needs at least 1")
    rng = np.random.default_rng(seed)
    values = [statistic(np.concatenate([rng.choice(task, len(task)) for task in scores])) for _ in range(num_resamples)]
    low, high = np.quantile(values, [level / 2, 1 - level / 2])
    return statistic(np.concatenate(scores)), float(low), float(high)
