"""Intervals: how far a success rate or a mean over seeds can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

# 97.5% quantiles of Student's t distribution for 1 to 30 degrees of freedom.
_T_QUANTILES = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_NORMAL_QUANTILE = 1.959964


def wilson_interval(successes: int, num: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (1927) of a success rate, [0, 1] where nothing was tried.

    Raises `ValueError` unless 0 <= successes <= num.
    """
    if not 0 <= successes <= num:
        raise ValueError(f"successes={successes} must lie between 0 and num={num}")
    if num == 0:
        return 0.0, 1.0
    rate, spread = successes / num, z * z / num
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95% interval of the mean (Student's t), as (mean, low, high); one value alone has infinite bounds.

    Raises `ValueError` if there are no values.
    """
    num = len(values)
    if num == 0:
        raise ValueError("values is empty: a mean needs at least 1 value")
    mean = math.fsum(values) / num
    if num == 1:
        return mean, -math.inf, math.inf
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1))
    half = t_quantile(num - 1) * deviation / math.sqrt(num)
    return mean, mean - half, mean + half


def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t distribution, right to 1e-3."""
    if degrees <= len(_T_QUANTILES):
        return _T_QUANTILES[degrees - 1]
    # Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5).
    z = _NORMAL_QUANTILE
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
