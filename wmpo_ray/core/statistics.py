"""Intervals: how far a success rate or a mean over seeds can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson_interval(successes: int, num: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (1927) of a success rate, [0, 1] where nothing was tried.

    Written out because processes of all kinds compute it, and importing scipy.stats takes each 0.7 s.

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


def rate_bound(successes: int, num: int, level: float = 0.05) -> float:
    """Upper bound of a rate with confidence 1 - `level`, one-sided and exact: too low at most that often.

    Clopper and Pearson, Biometrika 26 (1934), 404-413. Wilson's interval is closer on average, but it excludes a rare
    event that was not seen once too often, and here that is the case of interest. 1 of no trials.

    Raises `ValueError` unless 0 <= successes <= num.
    """
    if not 0 <= successes <= num:
        raise ValueError(f"successes={successes} must lie between 0 and num={num}")
    if successes == num:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(successes + 1, num - successes, 1 - level))


def trials_needed(rate: float, level: float = 0.05) -> int:
    """Fewest trials without a single success that show a rate of at most `rate` in (0, 1), by `rate_bound`."""
    return math.ceil(math.log(level) / math.log1p(-rate))


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
    from scipy.special import stdtrit  # benchmarks alone ask for this interval

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1))
    half = float(stdtrit(num - 1, 0.975)) * deviation / math.sqrt(num)
    return mean, mean - half, mean + half
