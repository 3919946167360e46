"""Runs a job from its newest checkpoint to its saved weights, in one call or a few steps per call on an actor."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from learners.supervised.jobs import Job
from learners.supervised.loop import WHOLE, Progress, WorkerShare
from learners.supervised.training_state import TrainingCheckpoints
from wmpo_ray.config.run import Config
from wmpo_ray.core.runtime_settings import configure_process, process_device

STEPS_PER_CALL = 10  # between progress reports


class Course:
    """A job in progress in this process."""

    def __init__(self, job: Job, share: WorkerShare, device: torch.device, checkpoints: TrainingCheckpoints):
        self._job, self._checkpoints = job, checkpoints
        self._seconds = 0.0
        self._training = job.begin(share, device)
        self._training.restore(checkpoints)
        job.measure_before(self._training)

    @property
    def num_steps(self) -> int:
        return self._training.num_steps

    def advance(self, progress: Progress, max_steps: int | None = None) -> None:
        """Train the remaining steps, at most `max_steps` of them. Raises `UserError` on a full disk."""
        started = time.monotonic()
        for batch in islice(self._training.batches(), max_steps):
            metrics = self._training.train_on(batch)
            progress(self._training.num_steps, {"loss": metrics["loss"]})
            self._training.save(self._checkpoints)
        self._seconds += time.monotonic() - started

    def finish(self) -> dict[str, Any]:
        return self._job.finish(self._training, self._seconds)


class TrainingActor:
    """Runs a job a few steps per call, so that the driver sees its progress.

    folder: of the checkpoints.
    """

    def __init__(self, config: Config, folder: str):
        configure_process(config.cluster.threads_per_process)
        self._device = process_device(config.cluster.device)
        self._messages: list[str] = []
        settings = config.checkpoint
        self._checkpoints = TrainingCheckpoints(
            Path(folder), settings.every_training_steps, settings.keep, self._messages.append
        )
        self._course: Course | None = None

    def begin(self, job: Job) -> tuple[int, list[str]]:
        """Take up the newest checkpoint; returns steps done, and what there is to report about the checkpoints."""
        self._course = Course(job, WHOLE, self._device, self._checkpoints)
        return self._course.num_steps, self._messages

    def advance(self) -> tuple[int, dict[str, float]]:
        """Train up to the next multiple of a few steps; returns steps done and the loss."""
        assert self._course is not None, "`begin` comes first"
        shown: dict[str, float] = {}
        # Up to a multiple, so that a resumed training reports the same steps.
        num_steps = STEPS_PER_CALL - self._course.num_steps % STEPS_PER_CALL
        self._course.advance(lambda step, metrics: shown.update(metrics), num_steps)
        return self._course.num_steps, shown

    def finish(self) -> dict[str, Any]:
        """Save the weights; returns the metrics."""
        assert self._course is not None, "`begin` comes first"
        return self._course.finish()
