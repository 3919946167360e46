"""The stage `world-model`: policy behaviour alignment of the world model and of its verifier, on the runtime."""

from __future__ import annotations

import logging
import time
from typing import Any

from cluster.events.event_log import emit
from cluster.recipes.context import RunContext
from cluster.recipes.trainings import align_on_workers, has_workers
from cluster.runtimes.runtime import ActorLostError, Ref
from cluster.workers.placement import role_resources
from learners.supervised.alignment import WorldModelAligner
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.registry import load_world_model
from wmpo_ray.rollout.fidelity import replay_error
from wmpo_ray.world_models.loading import begin_world_model


def world_model(context: RunContext) -> dict[str, Any]:
    """Align all models side by side, each from its newest checkpoint; leaves them in `models`."""
    config = context.config
    if config.world_model.kind == "simulator":
        return {"kind": "simulator"}
    names = {"world-model": config.world_model.pretrained}
    if config.reward.verify.enabled:
        names["verifier"] = config.reward.verify.pretrained
    if not config.world_model.alignment.steps:
        figures = {name: take_as_it_is(context, name, pretrained) for name, pretrained in names.items()}
    else:
        figures = align_on_workers(context, names) if has_workers(context) else align_in_actors(context, names)
    return {**figures.pop("world-model"), **figures}


def take_as_it_is(context: RunContext, name: str, pretrained: str) -> dict[str, Any]:
    """Leave a pretrained world model in `models` as a run keeps them, and measure its error."""
    config, seed = context.config, seed_for(context.config.seed, "align", name)
    with atomic_directory(context.model(name)) as folder:
        begin_world_model(config, pretrained, seed).save(folder)
    _, held_out = context.collected()
    world = load_world_model(config, str(context.model(name)))
    errors = replay_error(world, held_out, seed).tolist()
    mean = sum(errors) / len(errors)
    # Before and after are one: nothing was trained.
    return {
        "pretrained": pretrained,
        "psnr_per_frame_db": {"before": errors, "after": errors},
        "psnr_db_before": mean,
        "psnr_db_after": mean,
    }


def align_in_actors(context: RunContext, names: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Each model in one process of its own; name -> where its weights come from."""
    config = context.config
    train, held_out = context.collected()
    data = context.runtime.put((train, context.episodes("demos"), held_out))
    alignments = [Alignment(context, name, pretrained, data) for name, pretrained in names.items()]
    total = config.world_model.alignment.steps
    with context.reporter.bar("aligning world models", total * len(alignments)) as advance:
        try:
            calls = {alignment.start(): alignment for alignment in alignments}
            while calls:
                for ref in context.runtime.wait(list(calls)):
                    alignment = calls.pop(ref)
                    if (following := alignment.proceed(ref)) is not None:
                        calls[following] = alignment
                    advance(sum(each.num_steps for each in alignments), alignment.shown)
        finally:
            for alignment in alignments:
                alignment.stop()
    return {alignment.name: alignment.figures for alignment in alignments}


class Alignment:
    """One world model in alignment, on an actor that may be lost: the next one goes on from its checkpoint."""

    def __init__(self, context: RunContext, name: str, pretrained: str, data: Ref):
        self._context, self._runtime, self._data = context, context.runtime, data
        self._arguments = (context.config, name, pretrained, str(context.folder.training_checkpoints(name)))
        self.name = name
        self.num_steps = 0
        self.shown: dict[str, float] = {}
        self.figures: dict[str, Any] = {}
        self._actor: Any = None
        self._method = ""  # of the actor, under way
        self._resumed_from = 0
        self._losses = 0  # in a row, none of which left a newer checkpoint than the one before

    def start(self) -> Ref:
        """Place the actor; returns its first call."""
        resources = role_resources(self._context.config)["imagination"][1]
        self._actor = self._runtime.spawn(
            WorldModelAligner, *self._arguments, resources=resources, name=f"align-{self.name}"
        )
        self._method = "build"
        return self._runtime.build(self._actor)

    def proceed(self, ref: Ref) -> Ref | None:
        """Take the result of the call under way and make the next one; None once the model is saved.

        Raises what the call raised, and `RuntimeError` once the actor was lost `faults.max_start_failures` times
        without getting further.
        """
        try:
            value = self._runtime.get(ref)
        except ActorLostError as error:
            return self._start_again(error)
        if self._method == "build":
            return self._call("resume")
        if self._method == "resume":
            self._take_up(*value)
            return self._call("advance", self._data)
        if self._method == "finish":
            self.figures = value
            return None
        self.num_steps, self.shown = value
        if self.num_steps < self._context.config.world_model.alignment.steps:
            return self._call("advance", self._data)
        return self._call("finish", str(self._context.model(self.name)))

    def stop(self) -> None:
        if self._actor is not None:
            self._runtime.stop(self._actor)
            self._actor = None

    def _call(self, method: str, *args: Any) -> Ref:
        self._method = method
        return self._runtime.call(self._actor, method, *args)

    def _take_up(self, num_steps: int, messages: list[str]) -> None:
        for message in messages:
            emit("checkpoint.resumed", message, stage="world-model", model=self.name)
        if num_steps > self._resumed_from:
            self._losses = 0
        self.num_steps = self._resumed_from = num_steps

    def _start_again(self, error: ActorLostError) -> Ref:
        faults = self._context.config.faults
        self._losses += 1
        if self._losses >= faults.max_start_failures:
            raise RuntimeError(
                f"{error}\nthe process that aligns {self.name} was lost {self._losses} times without getting further "
                f"than step {self._resumed_from}; raise faults.max_start_failures={faults.max_start_failures}"
            ) from error
        text = f"{error}; aligning {self.name} in a new process"
        emit("worker.lost", text, logging.WARNING, error=str(error), worker=f"align-{self.name}", step=self.num_steps)
        self.stop()
        time.sleep(min(faults.backoff_s * 2 ** (self._losses - 1), faults.max_backoff_s))
        return self.start()
