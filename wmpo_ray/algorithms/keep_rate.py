"""The share of groups that are admitted, as seen so far, and how many to issue so that a batch fills.

It decides only how many groups are under way, never which ones make up a batch.
"""

from __future__ import annotations

import functools
from collections import Counter

WINDOW = 4  # updates that the estimate looks back on: a policy that learns changes it
PRIOR = (1.0, 1.0)  # of a Beta distribution: groups admitted and not admitted before the first
STEP = 64  # the estimate is rounded to multiples of 1 / STEP, which bounds the numbers that are computed


class KeepRate:
    """Groups that were judged and those that were admitted, by update."""

    def __init__(self) -> None:
        self._judged: Counter[int] = Counter()
        self._admitted: Counter[int] = Counter()

    def judged(self, update: int, is_admitted: bool) -> None:
        self._judged[update] += 1
        self._admitted[update] += is_admitted

    def estimate(self, update: int) -> float:
        """Of this update and the `WINDOW` before it; the mean of the Beta posterior."""
        seen = range(max(0, update - WINDOW), update + 1)
        admitted, judged = sum(self._admitted[u] for u in seen), sum(self._judged[u] for u in seen)
        return (PRIOR[0] + admitted) / (sum(PRIOR) + judged)

    def needed(self, update: int, missing: int, probability: float) -> int:
        """How many undecided groups hold `missing` that will be admitted with this probability."""
        if missing <= 0:
            return 0
        share = max(1, round(self.estimate(update) * STEP)) / STEP
        return missing if share >= 1 else _trials(missing, share, probability)


@functools.lru_cache(maxsize=4096)
def _trials(successes: int, share: float, probability: float) -> int:
    """The fewest trials n with P(Binomial(n, share) >= successes) >= probability."""
    from scipy.stats import binom  # half a second, which a run without this setting need not take

    low, high = successes, successes
    while binom.sf(successes - 1, high, share) < probability:
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        if binom.sf(successes - 1, middle, share) >= probability:
            high = middle
        else:
            low = middle + 1
    return low
