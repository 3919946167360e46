"""The optimizer steps of one update, taken as its mini-batches come."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch

from learners.divergence import was_skipped
from learners.learner_checkpoint import LearnerCheckpoints
from learners.minibatches import Block, IncomingGroups
from learners.sharding import MetricMeans, Ranks
from wmpo_ray.algorithms.base import OnlineAlgorithm
from wmpo_ray.algorithms.batching import GroupSlice, blocks_of
from wmpo_ray.config.run import Config
from wmpo_ray.core.files import json_clean
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import Trajectories
from wmpo_ray.runs.checkpoint import CheckpointFolder


class Learner(Protocol):
    """Owner of the weights."""

    config: Config
    policy: Policy
    ranks: Ranks
    num_updates: int
    num_skipped: int
    checkpoints: LearnerCheckpoints

    def measure(self, block: Block, means: MetricMeans) -> None: ...

    def accumulate(self, block: Block) -> object: ...

    def take_step(self, block: Block) -> dict[str, float]: ...

    def count_beat(self) -> None: ...


class UpdateInProgress:
    """Counts the steps of an update, and resumes one that was interrupted.

    A checkpoint inside the update counts if it was made on the same mini-batches. While these come, no step is taken:
    either the last of them restores the checkpoint, or the first that differs starts the update from its beginning. It is
    never one inside a mini-batch: whoever is lost there begins the mini-batch anew.
    """

    def __init__(self, learner: Learner):
        self._learner = learner
        self._num_epochs = learner.config.training.num_epochs
        self._every = learner.config.checkpoint.every_optimizer_steps
        self.first_seen: Observation  # at the first decision of the batch
        self.seconds = 0.0  # that the learner has worked
        self._steps: list[dict[str, float]] = []
        self._measures: dict[str, float] = {}
        self._before_first = MetricMeans()  # measures of the first mini-batch, block by block
        self._num_minibatches = 0  # that have come as a whole
        self._signatures: list[str] = []  # of the blocks so far
        self._kept: list[Block] = []  # for the epochs after the first
        self._num_steps: int | None = None  # of the whole update, once it is known
        self._saved = learner.checkpoints.find_step(learner.num_updates) if self._every else None
        self._deferred: list[Block] = []  # whose steps the checkpoint may contain

    @property
    def is_signed(self) -> bool:
        """Whether mini-batches need their signatures, so that checkpoints inside the update know them again."""
        return self._every > 0

    def train(self, blocks: Iterable[Block], num_last: int | None = None) -> None:
        """Go through the next blocks of the batch; `num_last`: it ends with these, which end so many mini-batches."""
        if num_last is not None:
            self._num_steps = self._num_epochs * (self._num_minibatches + num_last)
        for block in blocks:
            self._accept(block)
        if num_last is not None:
            self._start_over()  # the checkpoint's batch was a longer one
            for minibatch in (self._kept * self._num_epochs)[len(self._steps) :]:
                self._go_through(minibatch)

    def _accept(self, block: Block) -> None:
        place = len(self._signatures)
        self._signatures.append(block.signature)
        self._num_minibatches += block.is_last
        if not place:
            first = slice(block.rows.start, block.rows.start + 1)
            self.first_seen = block.batch.observed(first, torch.zeros(1, 2, dtype=torch.int64))
        if self._num_epochs > 1:
            self._kept.append(block)  # a whole mini-batch
        if self._saved is None:
            self._go_through(block)
            return
        self._deferred.append(block)
        known = self._saved.meta["signatures"]
        if known[place : place + 1] != [block.signature]:
            self._start_over()
        elif len(known) == len(self._signatures):
            self._restore(self._saved)

    def _start_over(self) -> None:
        """Take the steps that were put off; the checkpoint belongs to another batch."""
        deferred, self._deferred, self._saved = self._deferred, [], None
        for block in deferred:
            self._go_through(block)

    def _restore(self, saved: CheckpointFolder) -> None:
        self._learner.checkpoints.restore_step(saved)
        self._steps, self._learner.num_skipped = saved.meta["steps"], saved.meta["num_skipped"]
        self._measures = saved.meta["measures"]
        self._deferred, self._saved = [], None

    def _go_through(self, block: Block) -> None:
        """Add the block to the gradient of its mini-batch; with the last one comes the step."""
        if not self._steps:
            self._measure(block)
        with span("step"):
            if block.is_last:
                self._steps.append(self._learner.take_step(block))
            else:
                self._learner.accumulate(block)
        self._learner.count_beat()
        if block.is_last:
            self._save_if_due()

    def _measure(self, block: Block) -> None:
        with span("policy"):
            self._learner.measure(block, self._before_first)
            if block.is_last:
                self._measures = self._before_first.over(self._learner.ranks)

    def _save_if_due(self) -> None:
        if self._every and len(self._steps) % self._every == 0 and len(self._steps) != self._num_steps:
            with span("checkpoint"):
                self._save()

    def _save(self) -> None:
        progress = {
            "update": self._learner.num_updates,
            "signatures": self._signatures,
            "measures": self._measures,
            "steps": self._steps,
            "num_skipped": self._learner.num_skipped,
        }
        self._learner.checkpoints.save_step(len(self._steps), json_clean(progress))

    @property
    def are_skipped(self) -> list[bool]:
        """For each step, whether its loss or gradient was not finite."""
        return [was_skipped(step) for step in self._steps]

    def metrics(self) -> dict[str, float]:
        """The means over all steps, and what was measured before the first. A non-finite value is null in a checkpoint."""
        found = {key: [step[key] for step in self._steps if step.get(key) is not None] for key in self._steps[0]}
        metrics = {key: float(np.mean(values)) if values else math.nan for key, values in found.items()}
        return metrics | {key: math.nan if value is None else value for key, value in self._measures.items()}


class OnlineUpdate(UpdateInProgress):
    """An update on groups that come together or in parts."""

    def __init__(self, learner: Learner, algorithm: OnlineAlgorithm):
        super().__init__(learner)
        self._incoming = IncomingGroups(algorithm, learner.policy, blocks_of(learner.config), self.is_signed)

    @property
    def num_groups(self) -> int:
        return len(self._incoming.groups)

    def give(self, first: int, groups: Sequence[GroupSlice], sources: Iterable[Trajectories], is_last: bool) -> None:
        """Go through the blocks that groups from number `first` on complete; those known already are ignored."""
        started = time.monotonic()
        with span("batch"):
            self._incoming.add(first, groups, list(sources))
            count, blocks = self._incoming.cut(is_last)
        self.train(blocks, count if is_last else None)
        self.seconds += time.monotonic() - started

    def batch_metrics(self) -> dict[str, float]:
        """About the batch as a whole."""
        return self._incoming.metrics()
