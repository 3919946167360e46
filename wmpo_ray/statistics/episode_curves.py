"""Figures over the steps of episodes, with bootstrap intervals: episodes are resampled whole, with all their steps.

Values are [M, T], one for each step of M episodes, and NaN where there is none: after an episode's end, for example.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wmpo_ray.statistics.paired import resample_shares


class Estimate(NamedTuple):
    """A figure and its percentile interval; NaN where nothing was measured."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """Means over episodes. `by_step`, `low`, `high` [T]; `mean` and `slope` are over all values."""

    mean: Estimate
    by_step: np.ndarray
    low: np.ndarray
    high: np.ndarray
    slope: Estimate  # change from one step to the next, within episodes


class Crossing(NamedTuple):
    """The first step, from 1, at which a curve is worse than a bound, and its interval; None: not within the horizon."""

    step: int | None
    low: int | None
    high: int | None


class Resamples:
    """The same resamples for every figure, so that differences of figures can be compared as well."""

    def __init__(self, num_episodes: int, seed: int = 0, num_resamples: int = 1000, level: float = 0.05):
        self._shares = resample_shares(np.random.default_rng(seed), num_episodes, num_resamples)  # [R, M]
        self._quantiles = (level / 2, 1 - level / 2)

    def curve(self, values: np.ndarray) -> Curve:
        """Means of values [M, T] and their intervals."""
        by_step, resampled = self._by_step(values)
        low, high = self._interval(resampled)
        counted = ~np.isnan(values)
        mean = self.ratio(np.where(counted, values, 0.0).sum(1), counted.sum(1))
        return Curve(mean, by_step, low, high, self.slope(values))

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Estimate:
        """The sum of one figure of each episode [M] over the sum of another."""
        above, below = np.asarray(above, float), np.asarray(below, float)
        low, high = self._interval(_ratio(self._shares @ above, self._shares @ below))
        return Estimate(float(_ratio(above.sum(), below.sum())), float(low), float(high))

    def slope(self, values: np.ndarray) -> Estimate:
        """Least-squares change of values [M, T] from one step to the next, each episode having a level of its own.

        Episodes end at different steps, and those that last are not like the others. With one level for all, a curve
        would rise or fall because episodes leave it.
        """
        counted = ~np.isnan(values)
        steps = np.broadcast_to(np.arange(values.shape[1], dtype=float), values.shape)
        steps = steps - _ratio((steps * counted).sum(1), counted.sum(1))[:, None]
        steps = np.where(counted, steps, 0.0)
        # The mean of the steps is zero, so the mean of the values drops out.
        return self.ratio((steps * np.where(counted, values, 0.0)).sum(1), (steps**2).sum(1))

    def crossing(self, values: np.ndarray, bound: float, higher_is_better: bool) -> Crossing:
        """Where the mean over episodes of values [M, T] is first worse than a bound."""
        by_step, resampled = self._by_step(values)
        never = values.shape[1] + 1
        first, steps = (_first_beyond(curve, bound, higher_is_better, never) for curve in (by_step[None], resampled))
        ends = np.quantile(steps, self._quantiles, method="closest_observation")
        return Crossing(*(None if step == never else int(step) for step in (first[0], *ends)))

    def _by_step(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means [T] over episodes, and those of every resample [R, T]."""
        counted = ~np.isnan(values)
        filled = np.where(counted, values, 0.0).astype(float)
        resampled = _ratio(self._shares @ filled, self._shares @ counted.astype(float))
        return _ratio(filled.sum(0), counted.sum(0)), resampled

    def _interval(self, resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Over the first axis, without the resamples in which nothing was measured."""
        found = np.full((2, *resampled.shape[1:]), np.nan)
        there = ~np.isnan(resampled).all(0)
        found[:, there] = np.nanquantile(resampled[:, there], self._quantiles, axis=0)
        return found[0], found[1]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


def _first_beyond(curves: np.ndarray, bound: float, higher_is_better: bool, never: int) -> np.ndarray:
    """The first step [R], from 1, at which each of curves [R, T] is worse than a bound."""
    worse = curves < bound if higher_is_better else curves > bound
    return np.where(worse.any(1), worse.argmax(1) + 1, never)
