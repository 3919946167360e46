"""Success rates that were measured independently of each other."""

from __future__ import annotations

import math

from scipy.stats import norm

from wmpo_ray.core.statistics import wilson_interval


def newcombe_interval(
    successes_a: int, num_a: int, successes_b: int, num_b: int, level: float = 0.05
) -> tuple[float, float]:
    """Interval of rate B minus rate A from independent samples, with confidence 1 - `level`.

    Method 10 of Newcombe, Statistics in Medicine 17 (1998), 873-890: the Wilson intervals of both rates, combined.
    Raises `ValueError` for impossible counts.
    """
    z = two_sided_quantile(level)
    rate_a, rate_b = _rate(successes_a, num_a), _rate(successes_b, num_b)
    (low_a, high_a), (low_b, high_b) = wilson_interval(successes_a, num_a, z), wilson_interval(successes_b, num_b, z)
    difference = rate_b - rate_a
    return (
        difference - math.hypot(rate_b - low_b, high_a - rate_a),
        difference + math.hypot(high_b - rate_b, rate_a - low_a),
    )


def pooled_test(rate_a: float, num_a: int, rate_b: float, num_b: int) -> float:
    """Two-sided p-value of the pooled two-proportion z-test.

    Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions (2003), chapter 3. Raises `ValueError` unless
    both numbers are positive.
    """
    if num_a <= 0 or num_b <= 0:
        raise ValueError(f"num={num_a} and num={num_b}: a rate of nothing cannot be tested")
    pooled = (rate_a * num_a + rate_b * num_b) / (num_a + num_b)
    return z_test(rate_b - rate_a, pooled * (1 - pooled) * (1 / num_a + 1 / num_b))


def z_test(difference: float, variance: float) -> float:
    """Two-sided p-value of a difference that is normal with mean 0 and this variance if nothing differs."""
    if variance <= 0:
        return 0.0 if difference else 1.0
    return math.erfc(abs(difference) / math.sqrt(2 * variance))


def two_sided_quantile(level: float) -> float:
    """z such that a standard normal lies outside [-z, z] with probability `level`. Raises `ValueError` outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1; 0.05 gives 95% intervals")
    return float(norm.isf(level / 2))


def _rate(successes: int, num: int) -> float:
    if num < 1:
        raise ValueError(f"num={num}: the interval of a difference needs at least 1 trial of each")
    return successes / num
