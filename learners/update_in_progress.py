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
from learners.minibatches import IncomingGroups, Minibatch
from wmpo_ray.algorithms.base import OnlineAlgorithm
from wmpo_ray.algorithms.batching import GroupSlice
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
    num_updates: int
    num_skipped: int
    checkpoints: LearnerCheckpoints

    def measure(self, minibatch: Minibatch) -> dict[str, float]: ...

    def take_step(self, minibatch: Minibatch) -> dict[str, float]: ...

    def count_beat(self) -> None: ...


class UpdateInProgress:
    """Counts the steps of an update, and resumes one that was interrupted.

    A checkpoint inside the update counts if it was made on the same mini-batches. While these come, no step is taken:
    either the last of them restores the checkpoint, or the first that differs starts the update from its beginning.
    """

    def __init__(self, learner: Learner):
        self._learner = learner
        self._num_epochs = learner.config.training.num_epochs
        self._every = learner.config.checkpoint.every_optimizer_steps
        self.first_seen: Observation  # at the first decision of the batch
        self.seconds = 0.0  # that the learner has worked
        self._steps: list[dict[str, float]] = []
        self._measures: dict[str, float] = {}
        self._signatures: list[str] = []  # of the mini-batches so far
        self._kept: list[Minibatch] = []  # for the epochs after the first
        self._num_steps: int | None = None  # of the whole update, once it is known
        self._saved = learner.checkpoints.find_step(learner.num_updates) if self._every else None
        self._deferred: list[Minibatch] = []  # whose steps the checkpoint may contain

    @property
    def is_signed(self) -> bool:
        """Whether mini-batches need their signatures, so that checkpoints inside the update know them again."""
        return self._every > 0

    def train(self, minibatches: Iterable[Minibatch], num_last: int | None = None) -> None:
        """Take the steps of the next mini-batches of the batch; `num_last`: the batch ends with these, so many."""
        if num_last is not None:
            self._num_steps = self._num_epochs * (len(self._signatures) + num_last)
        for minibatch in minibatches:
            self._accept(minibatch)
        if num_last is not None:
            self._start_over()  # the checkpoint's batch was a longer one
            for minibatch in (self._kept * self._num_epochs)[len(self._steps) :]:
                self._step(minibatch)

    def _accept(self, minibatch: Minibatch) -> None:
        place = len(self._signatures)
        self._signatures.append(minibatch.signature)
        if not place:
            first = slice(minibatch.rows.start, minibatch.rows.start + 1)
            self.first_seen = minibatch.batch.observed(first, torch.zeros(1, 2, dtype=torch.int64))
        if self._num_epochs > 1:
            self._kept.append(minibatch)
        if self._saved is None:
            self._step(minibatch)
            return
        self._deferred.append(minibatch)
        known = self._saved.meta["signatures"]
        if known[place : place + 1] != [minibatch.signature]:
            self._start_over()
        elif len(known) == len(self._signatures):
            self._restore(self._saved)

    def _start_over(self) -> None:
        """Take the steps that were put off; the checkpoint belongs to another batch."""
        deferred, self._deferred, self._saved = self._deferred, [], None
        for minibatch in deferred:
            self._step(minibatch)

    def _restore(self, saved: CheckpointFolder) -> None:
        self._learner.checkpoints.restore_step(saved)
        self._steps, self._learner.num_skipped = saved.meta["steps"], saved.meta["num_skipped"]
        self._measures = saved.meta["measures"]
        self._deferred, self._saved = [], None

    def _step(self, minibatch: Minibatch) -> None:
        if not self._steps:
            with span("policy"):
                self._measures = self._learner.measure(minibatch)
        with span("step"):
            self._steps.append(self._learner.take_step(minibatch))
        self._learner.count_beat()
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
        size = learner.config.training.minibatch_trajectories
        self._incoming = IncomingGroups(algorithm, learner.policy, size, self.is_signed)

    @property
    def num_groups(self) -> int:
        return len(self._incoming.groups)

    def give(self, first: int, groups: Sequence[GroupSlice], sources: Iterable[Trajectories], is_last: bool) -> None:
        """Take the steps that the groups from number `first` on make possible; those known already are ignored."""
        started = time.monotonic()
        with span("batch"):
            self._incoming.add(first, groups, list(sources))
            count, minibatches = self._incoming.cut(is_last)
        self.train(minibatches, count if is_last else None)
        self.seconds += time.monotonic() - started

    def batch_metrics(self) -> dict[str, float]:
        """About the batch as a whole."""
        return self._incoming.metrics()
