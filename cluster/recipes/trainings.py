"""The supervised trainings of a run: in one process, or on the workers that `cluster.training_workers` asks for."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from cluster.events.event_log import emit
from cluster.recipes.context import RunContext
from cluster.runtimes.serial_runtime import SerialRuntime
from learners.supervised.jobs import AlignmentJob, CloningJob, RewardJob
from learners.supervised.loop import WHOLE, Progress, TrainingConfig, WorkerShare
from learners.supervised.reward_training import clips_to_learn
from learners.supervised.training_state import TrainingCheckpoints
from wmpo_ray.config.cluster import bounds
from wmpo_ray.core.runtime_settings import process_device
from wmpo_ray.core.types import Episodes


class Job(Protocol):
    """A training from its data to saved weights."""

    @property
    def num_steps(self) -> int: ...

    def __call__(
        self, share: WorkerShare, device: torch.device, progress: Progress, checkpoints: TrainingCheckpoints
    ) -> dict[str, Any]:
        """Returns the figures; on workers, those of rank 0."""


class Place(NamedTuple):
    """What a training is called, and which part of the configuration it follows."""

    name: str  # of its folder among the checkpoints
    description: str  # of its bar
    section: str
    settings: TrainingConfig


def has_workers(context: RunContext) -> bool:
    """Whether trainings run on workers of Ray Train; without Ray they never do."""
    return bounds(context.config.cluster.training_workers)[1] > 1 and not isinstance(context.runtime, SerialRuntime)


def clone(context: RunContext) -> dict[str, Any]:
    """Leaves the base policy in `models`."""
    config, out = context.config, context.model("base-policy").absolute()
    place = Place("policy", "behaviour cloning", "policy.cloning", config.policy.cloning)
    if not has_workers(context):
        return train_here(context, place, CloningJob(config, context.episodes("demos"), out))
    from cluster.ray_train.trainer import data_for_workers, train_on_workers

    data = data_for_workers(context, place)
    demos = data.read("demos", context.folder.trajectories / "demos.parquet")
    return train_on_workers(context, place, CloningJob(config, demos, out), data)


def align_on_workers(context: RunContext, names: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Align world models, name -> where its weights come from, one after the other; leaves them in `models`."""
    from cluster.ray_train.trainer import data_for_workers, train_on_workers

    config = context.config
    places = [Place(name, f"aligning {name}", "world_model.alignment", config.world_model.alignment) for name in names]
    data = data_for_workers(context, places[0])
    demos = data.read("demos", context.folder.trajectories / "demos.parquet")
    path = (context.folder.trajectories / "collect.parquet").absolute()
    collected = data.read("collect", path)
    num_held_out = context.num_validation(len(collected))
    rollouts = collected.rows(slice(len(collected) - num_held_out))
    figures = {}
    for place, (name, pretrained) in zip(places, names.items(), strict=True):
        out = context.model(name).absolute()
        job = AlignmentJob(config, name, pretrained, rollouts, demos, path, num_held_out, out)
        figures[name] = train_on_workers(context, place, job, data)
    return figures


def train_rewards(context: RunContext, episodes: Episodes) -> dict[str, Any]:
    """Leaves a reward model whose threshold is not chosen yet in `models`."""
    config, out = context.config, context.model("reward-model").absolute()
    texts = tuple(sorted(set(episodes.instructions)))
    instructions = texts if len(texts) > 1 else ()
    place = Place("reward-model", "reward model", "reward", config.reward)
    if not has_workers(context):
        return train_here(context, place, RewardJob(config, episodes, instructions, out))
    from cluster.ray_train.trainer import data_for_workers, train_on_workers

    clips_to_learn(config.reward, episodes)  # raises before any worker is asked for
    data = data_for_workers(context, place)
    return train_on_workers(context, place, RewardJob(config, data.put("episodes", episodes), instructions, out), data)


def train_here(context: RunContext, place: Place, job: Job) -> dict[str, Any]:
    """The whole of a training in this process."""
    device = process_device(context.config.cluster.device)
    with context.reporter.bar(place.description, job.num_steps) as advance:
        return job(WHOLE, device, advance, training_checkpoints(context, place.name))


def training_checkpoints(context: RunContext, name: str) -> TrainingCheckpoints:
    """Where a training in this process saves its state; what is to be told about that goes to the person."""
    settings = context.config.checkpoint
    return TrainingCheckpoints(
        context.folder.training_checkpoints(name),
        settings.every_training_steps,
        settings.keep,
        lambda message: emit("checkpoint.resumed", message, stage=name),
    )
