"""Whether two measurements differ by more than chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wmpo_ray.statistics.paired import Pairs, bootstrap_difference, mcnemar
from wmpo_ray.statistics.power import paired_starts_needed, starts_needed
from wmpo_ray.statistics.proportions import newcombe_interval, pooled_test, z_test
from wmpo_ray.statistics.sequential import Decision, SpendingTest

LEVEL = 0.05
MAX_SEQUENTIAL = 5000  # starts: the sequential test takes time that grows with their square


class Rate(NamedTuple):
    """A share with its 95% interval; `num`: how many were tried, 0 where that is not known."""

    value: float
    low: float
    high: float
    num: int = 0


class Verdict(NamedTuple):
    """`test`: the name of the test; `p_value`: None if only intervals were compared.

    num: starts of each run, 0 where that is not known. needed: starts with which a difference of this size would be
    detected four times in five, None where there is no difference.
    """

    is_significant: bool
    test: str
    p_value: float | None = None
    num: int = 0
    needed: int | None = None

    def sentence(self, difference: float) -> str:
        """`difference`: B minus A."""
        how = self.test if self.p_value is None else f"p {_p(self.p_value)}, {self.test}"
        if self.is_significant:
            return f"B is {'higher' if difference > 0 else 'lower'} ({how})"
        with_starts = f" with {self.num:,} starts" if self.num else ""
        needed = (
            ""
            if self.needed is None
            else f"; about {_two_digits(self.needed):,} starts would be needed for a difference this large"
        )
        return f"no difference shown{with_starts} ({how}){needed}"


def _two_digits(value: int) -> int:
    """Rounded up to two digits: an estimate from a small difference knows no more."""
    unit = 10 ** max(0, len(str(value)) - 2)
    return -(-value // unit) * unit


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def two_proportion_test(a: Rate, b: Rate) -> Verdict:
    """Pooled two-proportion z-test, two-sided, which needs no outcomes of single starts.

    Of policies that were measured on the same start states it is careful, not bold. Raises ValueError where a `num` is
    not positive.
    """
    p_value, num = pooled_test(a.value, a.num, b.value, b.num), min(a.num, b.num)
    are_rates = 0 <= a.value <= 1 and 0 <= b.value <= 1  # a damaged file may hold anything
    needed = starts_needed(a.value, b.value) if are_rates else None
    return Verdict(p_value < LEVEL, "two-proportion test", p_value, num, needed)


def paired_test(a: np.ndarray, b: np.ndarray) -> Verdict:
    """McNemar's exact test of outcomes [N] bool on the same starts."""
    pairs = Pairs.of(a, b)
    p_value = mcnemar(pairs)
    needed = paired_starts_needed(pairs.only_a / pairs.num, pairs.only_b / pairs.num)
    return Verdict(p_value < LEVEL, "McNemar's exact test on the same starts", p_value, pairs.num, needed)


def sequential_sentence(a: np.ndarray, b: np.ndarray) -> str:
    """What a sequential test of outcomes [N] on the same starts, read after each of them, would have said and when.

    "" where there are too many starts to compute it.
    """
    if len(a) > MAX_SEQUENTIAL:
        return ""
    test = SpendingTest(len(a), LEVEL)
    for pair in zip(a.tolist(), b.tolist(), strict=True):
        if test.add(*pair) is not Decision.UNDECIDED:
            return f"{test.decision.value} after {test.num_pairs:,} of {len(a):,} starts"
    return f"undecided after {len(a):,} starts"


def gains_test(base_a: Rate, final_a: Rate, base_b: Rate, final_b: Rate) -> Verdict:
    """Whether two gains (final minus base rate) differ: z-test with the variances of all four rates."""
    rates = (base_a, final_a, base_b, final_b)
    variance = sum(rate.value * (1 - rate.value) / rate.num for rate in rates if rate.num > 0)
    if any(rate.num <= 0 for rate in rates):
        return Verdict(False, "numbers of starts unknown")
    difference = (final_b.value - base_b.value) - (final_a.value - base_a.value)
    p_value = z_test(difference, variance)
    return Verdict(p_value < LEVEL, "z-test of the gains", p_value)


def paired_gains_test(base_a: np.ndarray, final_a: np.ndarray, base_b: np.ndarray, final_b: np.ndarray) -> Verdict:
    """Whether two gains differ, from outcomes [N] bool on the same starts: whether a bootstrap interval contains 0."""
    gain_a, gain_b = (final.astype(float) - base for base, final in ((base_a, final_a), (base_b, final_b)))
    _, low, high = bootstrap_difference(gain_a[None], gain_b[None])
    return Verdict(not low <= 0 <= high, "bootstrap over the same starts", None, len(gain_a))


def difference_interval(a: Rate, b: Rate) -> tuple[float, float] | None:
    """95% interval of rate B minus rate A (Newcombe), None where it is not known how many were tried."""
    if a.num <= 0 or b.num <= 0:
        return None
    counts = [round(rate.value * rate.num) for rate in (a, b)]
    if not all(0 <= count <= rate.num for count, rate in zip(counts, (a, b))):  # a damaged file may hold anything
        return None
    return newcombe_interval(counts[0], a.num, counts[1], b.num)


def compare_rates(a: Rate, b: Rate) -> Verdict:
    """The two-proportion test where it is known how many were tried, else whether the intervals overlap."""
    if a.num > 0 and b.num > 0:
        return two_proportion_test(a, b)
    apart = a.high < b.low or b.high < a.low
    return Verdict(apart, f"95% intervals {'do not overlap' if apart else 'overlap'}")
