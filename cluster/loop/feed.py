"""Gives the learner the batch of an update: its first mini-batches while the batch still fills, and then the rest.

With `groups_per_pass` it is given blocks of a mini-batch, whose gradients it sums up until the mini-batch is complete.

The batch of an update is a prefix of its issue order, so a group is part of it as soon as all groups before it are
settled, and a mini-batch, which is a contiguous block of the batch, is known as soon as its last group is. What it is
trained on, and under which weights, does not depend on when that was: the weights after the update are those of a batch
that is given as a whole. Nothing counts before the update is finished. A new learner has no part of it, and is given
everything again; the checkpoint that it begins with is one between two updates.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cluster.loop.learner_driver import Updated
from cluster.loop.ledger import Ledger
from cluster.loop.rollouts import Rollouts, for_learner
from cluster.workers.crew import Crew
from cluster.workers.tasks import Task
from cluster.workers.telemetry import Telemetry
from wmpo_ray.algorithms.base import online_algorithm, trains_in_parts
from wmpo_ray.algorithms.batching import blocks_of
from wmpo_ray.algorithms.group_queue import ReadyBatch
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import UpdateFacts
from wmpo_ray.core.types import Group, WeightVersion


def streams_updates(config: Config) -> bool:
    """Whether the learner may begin before the batch is full; the configuration decides it, never the timing.

    Not with staleness, where it works beside imagination already and must keep earlier weights; not with a budget of
    trajectories, whose last batch never fills; not beside a model that it shares its GPU with.
    """
    return (
        config.cluster.stream_updates
        and config.max_staleness == 0
        and not config.rollout.max_trajectories
        and config.placement.layout == "separate"
        and trains_in_parts(online_algorithm(config))
    )


class PartTrained(NamedTuple):
    """The learner has gone through what a part completed."""

    num_groups: int
    has_step: bool = True  # weights have changed: a mini-batch was complete


class Feedable(Protocol):
    """The online loop, as far as its updates need it."""

    config: Config
    crew: Crew
    telemetry: Telemetry
    ledger: Ledger
    rollouts: Rollouts
    version: WeightVersion | None
    next_update: int
    num_learner_losses: int

    def take_metrics(self) -> dict[str, float]: ...

    def learner_lost(self, error: Exception) -> None: ...


class Feed:
    """What the learner has been given of the batch of the next update."""

    def __init__(self, loop: Feedable):
        self._loop = loop
        self._is_on = streams_updates(loop.config)
        self._group_size = loop.config.rollout.group_size
        self._blocks = blocks_of(loop.config)
        self.update: int | None = None  # the latest one that the learner was given groups of
        self.num_given = 0  # groups at the beginning of its batch
        self.is_busy = False  # the learner is at a part

    def forget(self, is_rollback: bool = False) -> None:
        """There is a new learner; `is_rollback`: at an earlier update."""
        self.num_given, self.is_busy = 0, False
        if is_rollback:
            self.update = None

    def trained(self) -> None:
        self.is_busy = False

    def offer_part(self) -> None:
        """Submit the blocks of the next update that have become complete, unless the learner is still at others."""
        if not self._is_on or self.is_busy:
            return
        update = self._loop.next_update
        groups = self._loop.rollouts.queue.first_admitted(update)
        first = self.num_given if update == self.update else 0
        num_complete = self._blocks.complete(len(groups) * self._group_size)
        if num_complete > self._blocks.complete(first * self._group_size):
            self._begin(update)
            last = -(-num_complete // self._group_size)
            self.num_given, self.is_busy = last, True
            self._submit_part(update, first, groups[first:last])

    def _begin(self, update: int) -> None:
        if update != self.update:
            self.update, self.num_given, self._loop.num_learner_losses = update, 0, 0

    def _submit_part(self, update: int, first: int, groups: list[Group], spooled: bool = False) -> None:
        loop = self._loop
        assert loop.version is not None
        loop.ledger.flush()  # before anything depends on it
        slices, sources = for_learner(ReadyBatch(update, groups, [], {}), spooled)
        begin, end = (place * self._group_size // self._blocks.minibatch for place in (first, first + len(groups)))
        loop.crew.submit(
            Task(
                "learner",
                "update_part",
                (update, first, slices, *sources),
                order=(update, first),
                done=lambda value, ref: PartTrained(value, end > begin),
                given_up=loop.learner_lost,
                input_lost=lambda error: self._submit_part(update, first, groups, spooled=True),
                weights=loop.version.digest,
                max_crashes=1,  # a new learner must report its state first
                worked=lambda worker, work: loop.telemetry.worked(worker, "update_part", work, update, update),
            )
        )

    def finish(self, batch: ReadyBatch, spooled: bool = False) -> None:
        """Submit the rest of a batch, which ends its update; `spooled`: the learner reads the trajectories from disk."""
        loop = self._loop
        assert loop.version is not None
        self._begin(batch.update)
        loop.ledger.flush()  # before anything depends on it
        rest = batch._replace(groups=batch.groups[self.num_given :])
        slices, sources = for_learner(rest, spooled)
        metrics = batch.metrics | loop.rollouts.take_metrics() | loop.take_metrics()
        keys = [group.request.key for group in batch.groups]
        loop.crew.submit(
            Task(
                "learner",
                "update",
                (slices, UpdateFacts(metrics, keys, loop.ledger.offset, self.num_given), *sources),
                order=(batch.update, len(batch.groups)),  # after all parts
                done=lambda value, refs: Updated(value, refs[1], refs[2]),
                given_up=loop.learner_lost,
                input_lost=lambda error: self.finish(batch, spooled=True),  # the node that held them is gone
                num_returns=3,
                weights=loop.version.digest,
                max_crashes=1,  # a new learner must report its state first
                worked=lambda worker, work: loop.telemetry.worked(worker, "update", work, batch.update, batch.update),
            )
        )
