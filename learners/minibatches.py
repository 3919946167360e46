"""Mini-batches: contiguous blocks of an update's batch, cut as the groups of the batch come, in issue order.

Each of them is computed at once, or in several blocks of its own, which need not wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wmpo_ray.algorithms.base import OnlineAlgorithm, trains_in_parts
from wmpo_ray.algorithms.batching import Batch, Blocks, GroupSlice, slices_of
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import Trajectories


class Block(NamedTuple):
    """A mini-batch, or a contiguous block of one."""

    batch: Batch  # has its trajectories, and may have others
    rows: slice  # its own ones in it
    first: int  # place in the whole update of the first of them
    signature: str  # hash of `batch`; "" where nobody needs it
    is_first: bool = True  # of its mini-batch
    is_last: bool = True


def minibatches_of(batch: Batch, size: int, signed: bool) -> list[Block]:
    """Cut a whole batch."""
    signature = batch.signature() if signed else ""
    return [Block(batch, slice(first, first + size), first, signature) for first in range(0, len(batch), size)]


class IncomingGroups:
    """The groups of one update.

    If the algorithm allows it, each block is prepared from the groups that it has trajectories of, however the groups were
    handed in: nothing in it depends on when they came. Otherwise all groups are prepared together at the end.
    """

    def __init__(self, algorithm: OnlineAlgorithm, policy: Policy, blocks: Blocks, signed: bool):
        self._algorithm, self._policy, self._blocks, self._signed = algorithm, policy, blocks, signed
        self.in_parts = trains_in_parts(algorithm)
        self.groups: list[GroupSlice] = []  # all that have come
        self._waiting: list[tuple[GroupSlice, Trajectories]] = []  # with trajectories that no block has had
        self._num_used = 0  # trajectories of the first of them that a block has had
        self._num_cut = 0  # trajectories in all blocks so far
        self._metrics: dict[str, float] = {}

    def add(self, first: int, groups: Sequence[GroupSlice], sources: Sequence[Trajectories]) -> None:
        """Take the groups from number `first` on; those that have come before are ignored."""
        assert first <= len(self.groups), f"groups {len(self.groups)} to {first - 1} have not come"
        new = groups[len(self.groups) - first :]
        self.groups += new
        self._waiting += zip(new, slices_of(new, sources), strict=True)

    def cut(self, is_last: bool) -> tuple[int, Iterator[Block]]:
        """The blocks that have come as a whole, and with the last groups what is left: each, and how many mini-batches end.

        They are prepared as they are asked for.
        """
        if not self.in_parts:
            if not is_last:
                return 0, iter(())
            batch = self._prepare(self._waiting)
            self._metrics = batch.metrics
            whole = minibatches_of(batch, self._blocks.minibatch, self._signed)
            return len(whole), iter(whole)
        num_here = self._num_cut - self._num_used + sum(len(group.success) for group, _ in self._waiting)
        ends = self._ends(num_here, is_last)
        assert ends or not is_last or not self._num_cut % self._blocks.minibatch, (
            "the last mini-batch of a batch ends with groups"
        )
        lasts = [not end % self._blocks.minibatch or (is_last and end == num_here) for end in ends]
        return sum(lasts), (self._cut_one(end, last) for end, last in zip(ends, lasts, strict=True))

    def _ends(self, num_here: int, is_last: bool) -> list[int]:
        """Where the next blocks end, in trajectories of the batch, of which `num_here` have come."""
        ends, begin = [], self._num_cut
        stop = num_here if is_last else self._blocks.complete(num_here)
        while begin < stop:
            begin = min(self._blocks.end(begin), stop)
            ends.append(begin)
        return ends

    def _cut_one(self, stop: int, is_last: bool) -> Block:
        """The block up to trajectory `stop` of the batch, from the fewest groups that fill it."""
        first, begin = self._num_cut, self._num_used
        end, chosen, held = begin + stop - first, 0, 0
        while held < end:
            held += len(self._waiting[chosen][0].success)
            chosen += 1
        batch = self._prepare(self._waiting[:chosen])
        last = len(self._waiting[chosen - 1][0].success)
        is_whole = held == end  # else the next block begins inside the last group
        self._waiting = self._waiting[chosen if is_whole else chosen - 1 :]
        self._num_used = 0 if is_whole else end - (held - last)
        self._num_cut = stop
        signature = batch.signature() if self._signed else ""
        return Block(batch, slice(begin, end), first, signature, not first % self._blocks.minibatch, is_last)

    def _prepare(self, chosen: Sequence[tuple[GroupSlice, Trajectories]]) -> Batch:
        groups = [group._replace(pieces=((place, (0, len(group.success))),)) for place, (group, _) in enumerate(chosen)]
        with span("batch"):
            return self._algorithm.prepare(self._policy, groups, [trajectories for _, trajectories in chosen])

    def metrics(self) -> dict[str, float]:
        """About the batch as a whole, once it is cut."""
        return self._algorithm.summary(self.groups) if self.in_parts else self._metrics
