"""Runs the supervised trainings of a run, on actors of the runtime or on the workers of Ray Train.

Both resume from the newest checkpoint in the same folder and give the same weights; `cluster.training_workers` chooses.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from cluster.events.event_log import emit
from cluster.recipes.context import RunContext
from cluster.runtimes.runtime import ActorLostError, Ref
from cluster.runtimes.serial_runtime import SerialRuntime
from cluster.workers.placement import resources_of
from learners.supervised.jobs import Describe, FromFiles, Training
from learners.supervised.loop import check_batch
from learners.supervised.training_actor import TrainingActor
from wmpo_ray.config.cluster import bounds


def run_trainings(context: RunContext, describe: Describe) -> dict[str, dict[str, Any]]:
    """Run the trainings that `describe` makes of its episodes; returns the metrics of each by name."""
    return on_workers(context, describe) if has_workers(context) else on_actors(context, describe(FromFiles()))


def has_workers(context: RunContext) -> bool:
    """Whether trainings run on workers of Ray Train; never without Ray."""
    return bounds(context.config.cluster.training_workers)[1] > 1 and not isinstance(context.runtime, SerialRuntime)


def on_workers(context: RunContext, describe: Describe) -> dict[str, dict[str, Any]]:
    """Run one training after another, each on all workers."""
    from cluster.ray_train.trainer import check_room, train_on_workers
    from cluster.ray_train.training_data import TrainingData

    config, data = context.config, TrainingData()
    check_room(config, context.runtime)
    trainings = describe(data)
    for training in trainings:
        check_batch(training.settings, training.section, bounds(config.cluster.training_workers)[1])
    return {
        training.name: train_on_workers(
            config,
            training,
            data,
            context.training_checkpoints(training.name),
            context.reporter,
            context.curve(training.name, training.job.num_steps),
        )
        for training in trainings
    }


def on_actors(context: RunContext, trainings: list[Training]) -> dict[str, dict[str, Any]]:
    """Run all trainings in parallel, each on its own actor."""
    courses = [ActorCourse(context, training) for training in trainings]
    description = " and ".join(training.description for training in trainings)
    with context.reporter.bar(description, sum(training.job.num_steps for training in trainings)) as advance:
        try:
            calls = {course.start(): course for course in courses}
            while calls:
                for ref in context.runtime.wait(list(calls)):
                    course = calls.pop(ref)
                    if (following := course.proceed(ref)) is not None:
                        calls[following] = course
                    advance(sum(each.num_steps for each in courses), course.shown)
        finally:
            for course in courses:
                course.stop()
    return {course.training.name: course.metrics for course in courses}


class ActorCourse:
    """One training on an actor; if the actor is lost, a new one resumes from its checkpoint."""

    def __init__(self, context: RunContext, training: Training):
        self._context, self._runtime, self.training = context, context.runtime, training
        self._folder: Path = context.training_checkpoints(training.name)
        self._job = context.runtime.put(training.job)
        self._curve = context.curve(training.name, training.job.num_steps)
        self.num_steps = 0
        self.shown: dict[str, float] = {}
        self.metrics: dict[str, Any] = {}
        self._actor: Any = None
        self._method = ""  # of the actor, in progress
        self._resumed_from = 0
        self._losses = 0  # consecutive losses without a newer checkpoint

    def start(self) -> Ref:
        """Place the actor; returns its first call."""
        config, name = self._context.config, self.training.name
        resources = resources_of(config, self.training.role)
        self._actor = self._runtime.spawn(
            TrainingActor, config, str(self._folder.absolute()), resources=resources, name=f"training-{name}"
        )
        self._method = "build"
        return self._runtime.build(self._actor)

    def proceed(self, ref: Ref) -> Ref | None:
        """Take the result of the finished call and make the next one; None once the weights are saved.

        Raises what the call raised, and `RuntimeError` once the actor was lost `faults.max_start_failures` times
        without progress.
        """
        try:
            value = self._runtime.get(ref)
        except ActorLostError as error:
            return self._start_again(error)
        if self._method == "build":
            return self._call("begin", self._job)
        if self._method == "finish":
            self.metrics = value
            return None
        if self._method == "begin":
            self._take_up(*value)
        else:
            self.num_steps, self.shown = value
            self._curve.log(self.num_steps, self.shown)
        return self._call("advance" if self.num_steps < self.training.job.num_steps else "finish")

    def stop(self) -> None:
        if self._actor is not None:
            self._runtime.stop(self._actor)
            self._actor = None

    def _call(self, method: str, *args: Any) -> Ref:
        self._method = method
        return self._runtime.call(self._actor, method, *args)

    def _take_up(self, num_steps: int, messages: list[str]) -> None:
        for message in messages:
            emit("checkpoint.resumed", message, training=self.training.name)
        if num_steps > self._resumed_from:
            self._losses = 0
        self.num_steps = self._resumed_from = num_steps
        self._curve.restart(num_steps)

    def _start_again(self, error: ActorLostError) -> Ref:
        faults, name = self._context.config.faults, self.training.name
        self._losses += 1
        if self._losses >= faults.max_start_failures:
            raise RuntimeError(
                f"{error}\nthe process that trains {name} was lost {self._losses} times without progress beyond "
                f"step {self._resumed_from}; raise faults.max_start_failures={faults.max_start_failures}"
            ) from error
        text = f"{error}; training {name} continues in a new process"
        emit("worker.lost", text, logging.WARNING, error=str(error), worker=f"training-{name}", step=self.num_steps)
        self.stop()
        time.sleep(min(faults.backoff_s * 2 ** (self._losses - 1), faults.max_backoff_s))
        return self.start()
