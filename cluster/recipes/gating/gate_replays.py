"""Real actions replayed in a world model, video by video on the disk: what the gate holds is one batch of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np

from cluster.recipes.context import RunContext
from wmpo_ray.core.interfaces import Judge
from wmpo_ray.core.types import Episodes, Scores, Videos
from wmpo_ray.data.episodes import batch_within, parts_of
from wmpo_ray.data.store import episode_writer, load_episodes
from wmpo_ray.registry import load_world_model
from wmpo_ray.rollout.fidelity import replay_batches, starts_of

FILES = "gate-replays-{}"  # in `trajectories`, while the gate needs them


@contextmanager
def replayed(context: RunContext, world_model: str, episodes: Episodes, name: str) -> Iterator[Episodes]:
    """The episodes as a world model imagines their actions from their first frames, to the horizon; read as they are indexed.

    All but frames and lengths is what is real. The world model is loaded while it replays: two may not fit.
    """
    path = context.trajectory_file(FILES.format(name.replace(" ", "-")))
    world = load_world_model(context.config, str(context.model(world_model)))
    size, done = batch_within(episodes.frames.shape), 0
    with (
        context.reporter.bar(f"{name}, replayed in the {world_model}", len(episodes)) as advance,
        episode_writer(path) as writer,
    ):
        for videos in replay_batches(
            world, starts_of(episodes), episodes.actions, context.config.seed, size, progress=advance
        ):
            part, done = episodes.rows(slice(done, done + len(videos))), done + len(videos)
            lengths = np.full(len(videos), videos.shape[1] - 1, np.int64)
            writer.append(replace(part, frames=videos, lengths=lengths))
    del world
    try:
        yield load_episodes(path)
    finally:
        path.unlink()


def judged(judge: Judge, videos: Episodes) -> Scores:
    """The decision about each video, a batch of them at a time."""
    found = [
        judge.judge(Videos(np.asarray(part.frames), part.instructions, part.actions, tuple(starts_of(part))))
        for part in parts_of(videos)
    ]
    columns: dict[str, Any] = {
        field.name: [getattr(scores, field.name) for scores in found] for field in fields(Scores)
    }
    whole: dict[str, Any] = {
        name: None if values[0] is None else np.concatenate(values) for name, values in columns.items()
    }
    return Scores(**whole)
