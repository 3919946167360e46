"""Mini-batches: contiguous blocks of an update's batch, cut as the groups of the batch come, in issue order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wmpo_ray.algorithms.base import OnlineAlgorithm, trains_in_parts
from wmpo_ray.algorithms.batching import Batch, GroupSlice, slices_of
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import Trajectories


class Minibatch(NamedTuple):
    batch: Batch  # has its trajectories, and may have others
    rows: slice  # its own ones in it
    first: int  # place in the whole update of the first of them
    signature: str  # hash of `batch`; "" where nobody needs it


def minibatches_of(batch: Batch, size: int, signed: bool) -> list[Minibatch]:
    """Cut a whole batch."""
    signature = batch.signature() if signed else ""
    return [Minibatch(batch, slice(first, first + size), first, signature) for first in range(0, len(batch), size)]


class IncomingGroups:
    """The groups of one update.

    If the algorithm allows it, each mini-batch is prepared from the groups that it has trajectories of, however the groups
    were handed in: nothing in it depends on when they came. Otherwise all groups are prepared together at the end.
    """

    def __init__(self, algorithm: OnlineAlgorithm, policy: Policy, size: int, signed: bool):
        self._algorithm, self._policy, self._size, self._signed = algorithm, policy, size, signed
        self.in_parts = trains_in_parts(algorithm)
        self.groups: list[GroupSlice] = []  # all that have come
        self._waiting: list[tuple[GroupSlice, Trajectories]] = []  # with trajectories that no mini-batch has had
        self._num_used = 0  # trajectories of the first of them that a mini-batch has had
        self._num_cut = 0  # trajectories in all mini-batches so far
        self._metrics: dict[str, float] = {}

    def add(self, first: int, groups: Sequence[GroupSlice], sources: Sequence[Trajectories]) -> None:
        """Take the groups from number `first` on; those that have come before are ignored."""
        assert first <= len(self.groups), f"groups {len(self.groups)} to {first - 1} have not come"
        new = groups[len(self.groups) - first :]
        self.groups += new
        self._waiting += zip(new, slices_of(new, sources), strict=True)

    def cut(self, is_last: bool) -> tuple[int, Iterator[Minibatch]]:
        """The mini-batches that have come as a whole, and with the last groups what is left: how many, and each of them.

        They are prepared as they are asked for.
        """
        if not self.in_parts:
            if not is_last:
                return 0, iter(())
            batch = self._prepare(self._waiting)
            self._metrics = batch.metrics
            whole = minibatches_of(batch, self._size, self._signed)
            return len(whole), iter(whole)
        waiting = sum(len(group.success) for group, _ in self._waiting) - self._num_used
        count = -(-waiting // self._size) if is_last else waiting // self._size
        return count, (self._cut_one() for _ in range(count))

    def _cut_one(self) -> Minibatch:
        """From the fewest groups that fill it, or from all that are left."""
        begin, wanted, chosen, held = self._num_used, self._num_used + self._size, 0, 0
        while chosen < len(self._waiting) and held < wanted:
            held += len(self._waiting[chosen][0].success)
            chosen += 1
        end = min(held, wanted)
        batch = self._prepare(self._waiting[:chosen])
        last = len(self._waiting[chosen - 1][0].success)
        is_whole = held == end  # else the next mini-batch begins inside the last group
        self._waiting = self._waiting[chosen if is_whole else chosen - 1 :]
        self._num_used = 0 if is_whole else end - (held - last)
        first, self._num_cut = self._num_cut, self._num_cut + end - begin
        return Minibatch(batch, slice(begin, end), first, batch.signature() if self._signed else "")

    def _prepare(self, chosen: Sequence[tuple[GroupSlice, Trajectories]]) -> Batch:
        groups = [group._replace(pieces=((place, (0, len(group.success))),)) for place, (group, _) in enumerate(chosen)]
        with span("batch"):
            return self._algorithm.prepare(self._policy, groups, [trajectories for _, trajectories in chosen])

    def metrics(self) -> dict[str, float]:
        """About the batch as a whole, once it is cut."""
        return self._algorithm.summary(self.groups) if self.in_parts else self._metrics
