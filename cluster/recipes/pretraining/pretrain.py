"""The stage `pretrain`: a world model from play or recorded episodes, before any episode of the policy."""

from __future__ import annotations

from typing import Any

from cluster.recipes.checks import check_pretrained, check_workers
from cluster.recipes.context import RunContext
from cluster.recipes.pretraining.play_or_source import data_of, needs_of, record_episodes
from cluster.recipes.simulator_needs import plays
from cluster.recipes.stage import Stage
from cluster.recipes.trainings import run_trainings
from learners.supervised.jobs import EpisodeSource, PretrainJob, Training
from learners.supervised.pretraining import split_rows
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.npz_files import load_npy
from wmpo_ray.core.section import shown
from wmpo_ray.data.exchange.recorded_source import check_source
from wmpo_ray.environments.augmentation import augmentation_of
from wmpo_ray.registry import has_ability, make_play
from wmpo_ray.world_models.diffusion_settings import DiffusionConfig

MODEL, EPISODES, CONTACT = "pretrained", "pretrain", "pretrain-contact.npy"


def pretrain(context: RunContext) -> dict[str, Any]:
    """Make or take the episodes, train, and save the best weights with a card in `models/pretrained`."""
    config, path = context.config, context.trajectory_file(EPISODES)
    contact_file = path.with_name(CONTACT)
    if not path.exists():  # else an interrupted stage has made it
        record_episodes(context, path, contact_file)
    contact = None if config.pretrain.source else load_npy(contact_file)
    out = context.model(MODEL).absolute()

    def describe(source: EpisodeSource) -> list[Training]:
        episodes = source.read(EPISODES, path)
        split_rows(len(episodes), config.pretrain.num_held_out, config.seed)  # raises before any process is started
        job = PretrainJob(config, episodes, contact, data_of(config, path, len(episodes)), out)
        return [Training("pretrain", "pretraining the world model", "pretrain", config.pretrain, "imagination", job)]

    return run_trainings(context, describe)["pretrain"]


def check(config: Config, serial: bool) -> None:
    settings, world = config.pretrain, config.world_model
    if not isinstance(world, DiffusionConfig):
        raise ConfigError(
            f'pretrain.steps = {settings.steps} trains a world_model.kind of "diffusion", and it is {shown(world.kind)}; '
            "set pretrain.steps to 0 or change world_model.kind"
        )
    check_pretrained("world_model.pretrained", world.pretrained)
    check_pretrained("pretrain.reward_model", settings.reward_model)
    augmentation_of(config)
    check_workers(config, "pretrain", settings, serial)
    if (needs := needs_of(config)) is not None:
        check_source(needs)
    elif make_play(config.environment, 1, config.seed) is None:
        raise ConfigError(
            f"pretrain.source is empty, and environment.kind = {shown(config.environment.kind)} cannot play by itself; set "
            "pretrain.source to recorded episodes"
        )
    can_judge = settings.reward_model or has_ability(config.environment, "events")
    if settings.choose_by == "agreement" and not can_judge:
        raise ConfigError(
            f'pretrain.choose_by = "agreement": environment.kind = {shown(config.environment.kind)} does not say what a '
            'video shows; set pretrain.reward_model, or pretrain.choose_by to "loss"'
        )


PRETRAIN = Stage(
    "pretrain",
    pretrain,
    makes=(f"models/{MODEL}", "curves/pretrain.jsonl"),
    settings=(
        "pretrain",
        "augmentation",
        "rollout.chunk_length",
        *(f"world_model.{name}" for name in ("kind", "pretrained", "context_frames", "codec", "tiny_decoder")),
        *(f"world_model.{name}" for name in ("posterior", "network", "denoiser", "sampler", "attention", "compile")),
    ),
    state=("checkpoints/pretrain", f"trajectories/{EPISODES}.parquet", f"trajectories/{CONTACT}"),
    check=check,
    simulates=plays,
)
