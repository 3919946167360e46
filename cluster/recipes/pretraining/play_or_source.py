"""The episodes of the stage `pretrain`: play of the environment, recorded ones, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.recipes.context import RunContext
from cluster.recipes.stage import content_of
from wmpo_ray.config.episode_sources import PLAY
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

EPISODES, HELD_OUT, CONTACT = "pretrain", "pretrain-held-out", "pretrain-contact.npy"


class Part(NamedTuple):
    """Some of the episodes: those of one source, or the held-out ones."""

    key: str  # the setting that names the source
    source: str  # a file, a folder, or PLAY
    file: str  # the name of its trajectory file
    num_episodes: int  # 0: all of them
    count_key: str  # the setting for their number

    @property
    def is_play(self) -> bool:
        return self.source == PLAY


def training_parts(config: Config) -> list[Part]:
    """One for each source, in the order of the settings."""
    settings, count_key = config.pretrain, "pretrain.num_trajectories"
    if not settings.sources:
        return [Part("pretrain.source", settings.source or PLAY, EPISODES, settings.num_trajectories, count_key)]
    return [
        Part(
            "pretrain.sources", source, f"{EPISODES}-{i}", settings.num_trajectories if source == PLAY else 0, count_key
        )
        for i, source in enumerate(settings.sources)
    ]


def held_out_part(config: Config) -> Part | None:
    """None where the held-out episodes are taken from the others."""
    settings = config.pretrain
    if not settings.held_out:
        return None
    return Part("pretrain.held_out", settings.held_out, HELD_OUT, settings.num_held_out, "pretrain.num_held_out")


def all_parts(config: Config) -> list[Part]:
    held_out = held_out_part(config)
    return training_parts(config) + ([held_out] if held_out else [])


def record_episodes(context: RunContext, part: Part, path: Path, contact_file: Path) -> None:
    config = context.config
    if (needs := needs_of(config, part)) is not None:
        take_source(needs, path)
        return
    num, contact = config.pretrain.num_trajectories, []
    played = make_play(config.environment, num, config.seed)
    assert played is not None, "checked before the run"
    origin = recorded(config.environment, "play")
    with context.reporter.bar("episodes of play", num) as advance, episode_writer(path, origin) as writer:
        done = 0
        for each in played:
            writer.append(as_episodes(each))
            contact.append(each.contact)
            done += len(each.contact)
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


def data_of(config: Config, files: dict[str, Path], num_episodes: dict[str, int]) -> dict[str, Any]:
    """What the card says of the episodes. Both by the names of their files."""
    settings, parts, held_out = config.pretrain, training_parts(config), held_out_part(config)
    shares = settings.shares or (1.0,) * len(parts)
    total = sum(num_episodes[part.file] for part in parts)
    found = {
        "source": " and ".join(_name(part) for part in parts),
        "environment": config.environment.kind,
        "num_episodes": total - (0 if held_out else settings.num_held_out),
        "num_held_out": settings.num_held_out,
    }
    if len(parts) == 1 and held_out is None:
        return found | _facts(parts[0], files[parts[0].file])
    sources = [
        {"source": _name(part), "share": share / sum(shares), "num_episodes": num_episodes[part.file]}
        | _facts(part, files[part.file])
        for part, share in zip(parts, shares, strict=True)
    ]
    found["sources"] = sources
    if held_out is not None:
        found["held_out"] = {"source": _name(held_out), **_facts(held_out, files[held_out.file])}
    return found


def _name(part: Part) -> str:
    return part.source if part.is_play else Path(part.source).name


def _facts(part: Part, path: Path) -> dict[str, Any]:
    provenance = about_of(path).provenance
    return {
        "content": "" if part.is_play else content_of(part.source),
        "provenance": provenance.model_dump(mode="json") if provenance else {},
    }


def needs_of(config: Config, part: Part) -> SourceNeeds | None:
    """What is asked of the recorded episodes, which may be longer than those of the run; None for play."""
    settings, facts, chunk = config.pretrain, environment_facts(config.environment), config.rollout.chunk_length
    if part.is_play:
        return None
    num, longest = extent_of(part.key, part.source, settings.source_image_key)
    return SourceNeeds(
        key=part.key,
        path=part.source,
        count_key=part.count_key,
        num_episodes=part.num_episodes or num,
        frame_shape=facts.frame_shape,
        action_dims=facts.action_dim,
        instructions=(),
        horizon=-(-longest // chunk) * chunk,  # whole chunks are replayed
        chunk_length=chunk,
        held_out_from=TRAINING_LIMIT,
        is_held_out=False,  # a checkpoint is chosen by them, which no episode of an evaluation may do
        needs_starts="",
        must_be_real=False,
        image_key=settings.source_image_key,
        instruction=settings.source_instruction,
    )
