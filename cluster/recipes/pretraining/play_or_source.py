"""The episodes of the stage `pretrain`: play of the environment, or recorded ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cluster.recipes.context import RunContext
from cluster.recipes.stage import content_of
from wmpo_ray.config.run import Config
from wmpo_ray.core.files import atomic_file
from wmpo_ray.core.interfaces import Play
from wmpo_ray.core.starts import TRAINING_LIMIT
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import about_of
from wmpo_ray.data.exchange.recorded_source import SourceNeeds, extent_of, take_source
from wmpo_ray.data.exchange.recording import UNKNOWN_START
from wmpo_ray.data.store import episode_writer
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.registry import make_play
from wmpo_ray.rollout.origins import recorded


def record_episodes(context: RunContext, path: Path, contact_file: Path) -> None:
    config = context.config
    if (needs := needs_of(config)) is not None:
        take_source(needs, path)
        return
    num, contact = config.pretrain.num_trajectories, []
    played = make_play(config.environment, num, config.seed)
    assert played is not None, "checked before the run"
    origin = recorded(config.environment, "play")
    with context.reporter.bar("episodes of play", num) as advance, episode_writer(path, origin) as writer:
        done = 0
        for part in played:
            writer.append(as_episodes(part))
            contact.append(part.contact)
            done += len(part.contact)
            advance(done)
        with atomic_file(contact_file) as partial, open(partial, "wb") as file:
            np.save(file, np.concatenate(contact), allow_pickle=False)


def as_episodes(part: Play) -> Episodes:
    """Play as it is stored: its scenes cannot be rebuilt, and nothing was to be reached."""
    num, horizon = part.contact.shape
    return Episodes(
        part.frames,
        part.actions,
        np.full(num, horizon, np.int64),
        np.zeros(num, bool),
        part.instructions,
        np.full(num, UNKNOWN_START, np.int64),
    )


def data_of(config: Config, path: Path, num_episodes: int) -> dict[str, Any]:
    """What the card says of the episodes."""
    settings, provenance = config.pretrain, about_of(path).provenance
    return {
        "source": Path(settings.source).name if settings.source else "play",
        "content": content_of(settings.source) if settings.source else "",
        "environment": config.environment.kind,
        "num_episodes": num_episodes - settings.num_held_out,
        "num_held_out": settings.num_held_out,
        "provenance": provenance.model_dump(mode="json") if provenance else {},
    }


def needs_of(config: Config) -> SourceNeeds | None:
    """What is asked of the recorded episodes, which may be longer than those of the run; None for play."""
    settings, facts, chunk = config.pretrain, environment_facts(config.environment), config.rollout.chunk_length
    if not settings.source:
        return None
    num, longest = extent_of("pretrain.source", settings.source, settings.source_image_key)
    return SourceNeeds(
        key="pretrain.source",
        path=settings.source,
        count_key="pretrain.num_trajectories",
        num_episodes=settings.num_trajectories or num,
        frame_shape=facts.frame_shape,
        action_dims=facts.action_dim,
        instructions=(),
        horizon=-(-longest // chunk) * chunk,  # whole chunks are replayed
        chunk_length=chunk,
        held_out_from=TRAINING_LIMIT,
        is_held_out=False,
        needs_starts="",
        must_be_real=False,
        image_key=settings.source_image_key,
        instruction=settings.source_instruction,
    )
