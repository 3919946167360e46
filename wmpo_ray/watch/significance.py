"""Whether two measurements differ by more than chance."""

from __future__ import annotations

import math
from typing import NamedTuple

LEVEL = 0.05


class Rate(NamedTuple):
    """A share with its 95% interval; `num`: how many were tried, 0 where that is not known."""

    value: float
    low: float
    high: float
    num: int = 0


class Verdict(NamedTuple):
    """`test`: the name of the test; `p_value`: None if only intervals were compared."""

    is_significant: bool
    test: str
    p_value: float | None = None

    def sentence(self, difference: float) -> str:
        """`difference`: B minus A."""
        how = self.test if self.p_value is None else f"p {_p(self.p_value)}, {self.test}"
        if not self.is_significant:
            return f"no difference shown ({how})"
        return f"B is {'higher' if difference > 0 else 'lower'} ({how})"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def two_proportion_test(a: Rate, b: Rate) -> Verdict:
    """Pooled two-proportion z-test, two-sided (Fleiss, Levin and Paik, Statistical Methods for Rates, chapter 3).

    Both policies are measured on the same start states; leaving that out makes the test careful, not bold. Raises
    ValueError where a `num` is not positive.
    """
    if a.num <= 0 or b.num <= 0:
        raise ValueError(f"num={a.num} and num={b.num}: a rate of nothing cannot be tested")
    pooled = (a.value * a.num + b.value * b.num) / (a.num + b.num)
    variance = pooled * (1 - pooled) * (1 / a.num + 1 / b.num)
    return _normal(b.value - a.value, variance, "two-proportion test")


def gains_test(base_a: Rate, final_a: Rate, base_b: Rate, final_b: Rate) -> Verdict:
    """Whether two gains (final minus base rate) differ: z-test with the variances of all four rates."""
    rates = (base_a, final_a, base_b, final_b)
    variance = sum(rate.value * (1 - rate.value) / rate.num for rate in rates if rate.num > 0)
    if any(rate.num <= 0 for rate in rates):
        return Verdict(False, "numbers of starts unknown")
    difference = (final_b.value - base_b.value) - (final_a.value - base_a.value)
    return _normal(difference, variance, "z-test of the gains")


def gain_interval(base: Rate, final: Rate) -> tuple[float, float] | None:
    """95% interval of final minus base rate (Wald), None where it is not known how many were tried."""
    if base.num <= 0 or final.num <= 0:
        return None
    variance = sum(rate.value * (1 - rate.value) / rate.num for rate in (base, final))
    half = 1.959964 * math.sqrt(max(0.0, variance))  # a damaged file may hold any rate
    return final.value - base.value - half, final.value - base.value + half


def compare_rates(a: Rate, b: Rate) -> Verdict:
    """The two-proportion test where it is known how many were tried, else whether the intervals overlap."""
    if a.num > 0 and b.num > 0:
        return two_proportion_test(a, b)
    apart = a.high < b.low or b.high < a.low
    return Verdict(apart, f"95% intervals {'do not overlap' if apart else 'overlap'}")


def _normal(difference: float, variance: float, test: str) -> Verdict:
    if variance <= 0:
        return Verdict(difference != 0, test, 0.0 if difference else 1.0)
    p_value = math.erfc(abs(difference) / math.sqrt(2 * variance))
    return Verdict(p_value < LEVEL, test, p_value)
