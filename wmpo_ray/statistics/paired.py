"""Two policies on the same start states: what is the same in every pair cancels out."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np
from scipy.stats import binomtest

from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.statistics.proportions import two_sided_quantile


class Pairs(NamedTuple):
    """Start states by outcome; `only_a`: A succeeded from them and B failed."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> Self:
        """Count outcomes [N] bool of the same N starts in the same order. Raises `ValueError` for other shapes."""
        a, b = np.asarray(a, bool), np.asarray(b, bool)
        if a.shape != b.shape or a.ndim != 1:
            raise ValueError(
                f"outcomes of shapes {a.shape} and {b.shape}: pairs need the same starts, in one dimension"
            )
        return cls(*(int(found.sum()) for found in (a & b, a & ~b, ~a & b, ~a & ~b)))

    @property
    def num(self) -> int:
        return sum(self)

    @property
    def difference(self) -> float:
        """Success rate of B minus that of A; 0 without pairs."""
        return (self.only_b - self.only_a) / self.num if self.num else 0.0


def mcnemar(pairs: Pairs) -> float:
    """Two-sided p-value of McNemar's exact test: among the starts where only one succeeded, either is as likely.

    Psychometrika 12 (1947), 153-157, with binomial probabilities in place of the normal approximation.
    """
    discordant = pairs.only_a + pairs.only_b
    return float(binomtest(pairs.only_b, discordant, 0.5).pvalue) if discordant else 1.0


def newcombe_paired_interval(pairs: Pairs, level: float = 0.05) -> tuple[float, float]:
    """Interval of rate B minus rate A, with confidence 1 - `level`.

    Method 10 of Newcombe, Statistics in Medicine 17 (1998), 2635-2650: the Wilson intervals of both rates, combined
    with their correlation. Raises `ValueError` without pairs.
    """
    if pairs.num < 1:
        raise ValueError("no pairs: the interval of a difference needs at least 1 start that both were measured on")
    z, num = two_sided_quantile(level), pairs.num
    successes = (pairs.both + pairs.only_a, pairs.both + pairs.only_b)
    (low_a, high_a), (low_b, high_b) = (wilson_interval(count, num, z) for count in successes)
    rate_a, rate_b = (count / num for count in successes)
    below_a, above_a, below_b, above_b = rate_a - low_a, high_a - rate_a, rate_b - low_b, high_b - rate_b
    phi = _correlation(pairs)
    low = math.sqrt(max(0.0, below_b**2 - 2 * phi * below_b * above_a + above_a**2))
    high = math.sqrt(max(0.0, above_b**2 - 2 * phi * above_b * below_a + below_a**2))
    return pairs.difference - low, pairs.difference + high


def _correlation(pairs: Pairs) -> float:
    """Phi of the 2x2 table, its numerator corrected for continuity as in method 10."""
    both, only_a, only_b, neither = pairs
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if not margins:
        return 0.0
    product = float(both * neither - only_a * only_b)
    if product > 0:
        product = max(product - pairs.num / 2, 0.0)
    return product / math.sqrt(margins)


def bootstrap_difference(
    a: np.ndarray,
    b: np.ndarray,
    are_seeds_matched: bool = True,
    seed: int = 0,
    num_resamples: int = 4000,
    level: float = 0.05,
) -> tuple[float, float, float]:
    """Mean of B minus mean of A and its percentile interval, as (mean, low, high), with seeds and starts resampled.

    a, b: outcomes or scores [S, N] of S training seeds each, all measured on the same N starts. Both levels are drawn anew,
    with replacement: the seeds and, independently of them, the starts, because every seed is measured on the same starts
    (the pigeonhole bootstrap of Owen, Annals of Applied Statistics 1 (2007), 386-411). Matched: row i of both is of one
    seed, and resampled as one. With S = 1 the interval covers the choice of the starts only, and with fewer than about 5
    seeds it is too narrow. Raises `ValueError` for shapes that do not match.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.ndim != 2 or b.ndim != 2 or not a.size or a.shape[1] != b.shape[1] or not len(b):
        raise ValueError(
            f"outcomes of shapes {a.shape} and {b.shape}: both must be [seeds, starts], of the same starts"
        )
    if are_seeds_matched and len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} seeds: seeds that are matched must be as many for both")
    rng = np.random.default_rng(seed)
    starts, seeds_a = (resample_shares(rng, num, num_resamples) for num in (a.shape[1], len(a)))
    seeds_b = seeds_a if are_seeds_matched else resample_shares(rng, len(b), num_resamples)
    means = ((seeds_b @ b - seeds_a @ a) * starts).sum(1)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    return float(b.mean() - a.mean()), float(low), float(high)


def resample_shares(rng: np.random.Generator, num: int, num_resamples: int) -> np.ndarray:
    """Shares [num_resamples, num] of `num` entries in samples of `num` drawn with replacement."""
    return rng.multinomial(num, np.full(num, 1 / num), num_resamples) / num
