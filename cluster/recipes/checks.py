"""What several stages check before the first stage begins, and what they ask of recorded episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from learners.supervised.loop import TrainingConfig, check_batch
from wmpo_ray.config.cluster import bounds
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.starts import TRAINING_LIMIT
from wmpo_ray.data.exchange.recorded_source import SourceNeeds, check_source
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.world_models.diffusion import PRETRAINED_DIR


def check_pretrained(key: str, path: str) -> None:
    """Raises UserError for pretrained weights that a stage could not load."""
    if not path:
        return
    if Path(path).exists():
        from wmpo_ray.checkpoints.inspection import check_loadable  # imports every kind of model

        check_loadable(path, key)
    elif not (PRETRAINED_DIR / path).exists():
        raise UserError(f"{key} = {path}: does not exist; set {key} to the folder of a model")


def check_workers(config: Config, section: str, settings: TrainingConfig, serial: bool) -> None:
    """Raises ConfigError for more training workers than samples in a batch."""
    if settings.steps and not serial:
        check_batch(settings, section, bounds(config.cluster.training_workers)[1])


def source_needs(config: Config, section: Literal["demos", "collect", "gate"]) -> SourceNeeds | None:
    """What is asked of the recorded episodes that a section names; None where it names none."""
    settings = getattr(config, section)
    if not settings.source:
        for name in ("source_image_key", "source_instruction"):
            if found := getattr(settings, name):
                raise ConfigError(f"{section}.{name} = {found}: there is no {section}.source; set it, or remove this")
        return None
    facts, rebuilt = environment_facts(config.environment), ""
    if section != "demos" and not config.world_model.is_learned:
        rebuilt = f"world_model.kind = {config.world_model.kind}"
    elif section == "collect" and config.rollout.world == "environment":
        rebuilt = "rollout.world = environment"
    elif section == "gate" and config.gate.num_counterfactuals:
        rebuilt = f"gate.num_counterfactuals = {config.gate.num_counterfactuals}"
    return SourceNeeds(
        key=f"{section}.source",
        path=settings.source,
        count_key=f"{section}.num_trajectories",
        num_episodes=settings.num_trajectories,
        frame_shape=facts.frame_shape,
        action_dims=facts.action_dim,
        instructions=facts.instructions,
        horizon=config.environment.horizon,
        chunk_length=config.rollout.chunk_length,
        held_out_from=TRAINING_LIMIT,
        is_held_out=section == "gate",
        needs_starts=rebuilt,
        must_be_real=section != "demos",
        image_key=settings.source_image_key,
        instruction=settings.source_instruction,
    )


def check_sources(config: Config, *sections: Literal["demos", "collect", "gate"]) -> None:
    """Raises UserError for recorded episodes that the run could not take."""
    for section in sections:
        if (needs := source_needs(config, section)) is not None:
            check_source(needs)
