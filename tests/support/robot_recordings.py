"""Episodes as a robot's recorder writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wmpo_client.episode_recorder import EpisodeRecorder
from wmpo_client.episode_spool import Spool
from wmpo_client.served_policy import Chunk, Seen
from wmpo_ray.environments.pocket.env import INSTRUCTIONS

CHUNK = Chunk(np.zeros((4, 3), np.float32), 7, "abc")


def frame(value: int) -> np.ndarray:
    return np.random.default_rng(value).integers(0, 255, (16, 16, 3)).astype(np.uint8)


def view(value: int) -> Seen:
    return Seen({"main": frame(value)}, INSTRUCTIONS[0])


def record(spool: Spool, value: int = 0, success: bool | None = True, num_steps: int = 4, **options) -> str:
    """One episode whose frames and actions follow from `value`; returns its id."""
    recorder = EpisodeRecorder(spool)
    recorder.begin(view(1000 * value), **options)
    for step in range(num_steps):
        action = np.full(3, (value % 100) / 100, np.float32)
        seen = view(1000 * value + step + 1)
        recorder.step(action, seen, step == 1, CHUNK, ("miss",) if success is False else ())
    return recorder.end(success, failure_names=("miss", "jam"))


def recorded(folder: Path, **options) -> tuple[Spool, str]:
    spool = Spool(folder)
    return spool, record(spool, **options)
