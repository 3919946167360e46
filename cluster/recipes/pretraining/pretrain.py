"""The stage `pretrain`: a world model from play or recorded episodes, before any episode of the policy."""

from __future__ import annotations

from typing import Any

from cluster.recipes.checks import check_pretrained, check_workers
from cluster.recipes.context import RunContext
from cluster.recipes.pretraining.play_or_source import (
    CONTACT,
    EPISODES,
    all_parts,
    data_of,
    held_out_part,
    needs_of,
    record_episodes,
    training_parts,
)
from cluster.recipes.simulator_needs import plays
from cluster.recipes.stage import Stage, content_of
from cluster.recipes.trainings import run_trainings
from learners.supervised.jobs import EpisodeSource, PretrainJob, Training
from learners.supervised.pretraining import PretrainSource, split_rows
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.npz_files import load_npy
from wmpo_ray.core.section import shown
from wmpo_ray.data.exchange.recorded_source import check_source
from wmpo_ray.environments.augmentation import augmentation_of
from wmpo_ray.registry import has_ability, make_play
from wmpo_ray.world_models.diffusion_settings import DiffusionConfig

MODEL = "pretrained"


def pretrain(context: RunContext) -> dict[str, Any]:
    """Make or take the episodes, train, and save the best weights with a card in `models/pretrained`."""
    config, contact_file = context.config, context.trajectory_file(EPISODES).with_name(CONTACT)
    files = {part.file: context.trajectory_file(part.file) for part in all_parts(config)}
    for part in all_parts(config):
        if not files[part.file].exists():  # else an interrupted stage has made it
            record_episodes(context, part, files[part.file], contact_file)
    contact = load_npy(contact_file) if config.pretrain.has_play else None
    out, parts, other = context.model(MODEL).absolute(), training_parts(config), held_out_part(config)
    shares = config.pretrain.shares or (1.0,) * len(parts)

    def describe(source: EpisodeSource) -> list[Training]:
        read = {name: source.read(name, path) for name, path in files.items()}
        sources = tuple(
            PretrainSource(read[part.file], contact if part.is_play else None, share)
            for part, share in zip(parts, shares, strict=True)
        )
        held_out = read[other.file] if other else None
        if held_out is None:  # raises before any process is started
            split_rows(len(sources[0].episodes), config.pretrain.num_held_out, config.seed)
        data = data_of(config, files, {name: len(episodes) for name, episodes in read.items()})
        job = PretrainJob(config, sources, held_out, data, out)
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
    check_parts(config)
    can_judge = settings.reward_model or has_ability(config.environment, "events")
    if settings.choose_by == "agreement" and not can_judge:
        raise ConfigError(
            f'pretrain.choose_by = "agreement": environment.kind = {shown(config.environment.kind)} does not say what a '
            'video shows; set pretrain.reward_model, or pretrain.choose_by to "loss"'
        )


def check_parts(config: Config) -> None:
    settings, held_out = config.pretrain, held_out_part(config)
    for part in all_parts(config):
        if (needs := needs_of(config, part)) is not None:
            check_source(needs)
        elif make_play(config.environment, 1, config.seed) is None:
            chosen = 'pretrain.sources name "play"' if settings.sources else "pretrain.source is empty"
            raise ConfigError(
                f"{chosen}, and environment.kind = {shown(config.environment.kind)} cannot play by itself; set "
                f"{part.key} to recorded episodes"
            )
    for part in training_parts(config):
        if held_out is not None and not part.is_play and content_of(part.source) == content_of(held_out.source):
            raise ConfigError(
                f"pretrain.held_out = {held_out.source} has the same content as {part.source} in {part.key}: the episodes "
                "that choose the checkpoint must not be trained on; name another file"
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
    state=("checkpoints/pretrain", *(f"trajectories/{EPISODES}{end}" for end in (".parquet", "-*.parquet", "-*.npy"))),
    check=check,
    simulates=plays,
)
