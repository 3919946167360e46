"""How many start states a difference needs to be detected."""

from __future__ import annotations

import math

from scipy.stats import norm

from wmpo_ray.statistics.proportions import two_sided_quantile

POWER = 0.8  # the probability of detecting the difference


def starts_needed(rate_a: float, rate_b: float, power: float = POWER, level: float = 0.05) -> int | None:
    """Trials of each of two policies after which the two-sided pooled test finds their difference with this power.

    Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions (2003), chapter 4, without the correction for
    continuity. None where the rates are equal. Raises `ValueError` for a rate outside [0, 1].
    """
    if not (0 <= rate_a <= 1 and 0 <= rate_b <= 1):
        raise ValueError(f"rates {rate_a} and {rate_b} must lie between 0 and 1")
    mean = (rate_a + rate_b) / 2
    separate = rate_a * (1 - rate_a) + rate_b * (1 - rate_b)
    return _needed(rate_b - rate_a, 2 * mean * (1 - mean), separate, power, level)


def paired_starts_needed(
    share_only_a: float, share_only_b: float, power: float = POWER, level: float = 0.05
) -> int | None:
    """Starts, each tried by both policies, after which McNemar's test finds their difference with this power.

    `share_only_a`: share of the starts from which only A succeeds. Connor, Biometrics 43 (1987), 207-211. None where the
    shares are equal. Raises `ValueError` for shares that are negative or sum to more than 1.
    """
    if share_only_a < 0 or share_only_b < 0 or share_only_a + share_only_b > 1 + 1e-9:
        raise ValueError(f"shares {share_only_a} and {share_only_b} must not be negative nor sum to more than 1")
    discordant, difference = share_only_a + share_only_b, share_only_b - share_only_a
    needed = _needed(difference, discordant, discordant - difference**2, power, level)
    if needed is None:
        return None
    # Even if all of them favour one policy, fewer pairs that differ cannot reach the level.
    return max(needed, math.ceil(math.ceil(math.log2(2 / level)) / discordant))


def _needed(difference: float, variance_null: float, variance: float, power: float, level: float) -> int | None:
    if not 0 < power < 1:
        raise ValueError(f"power={power} must lie between 0 and 1")
    if not difference:
        return None
    quantiles = two_sided_quantile(level) * math.sqrt(variance_null) + norm.ppf(power) * math.sqrt(max(0.0, variance))
    return math.ceil((quantiles / difference) ** 2)
