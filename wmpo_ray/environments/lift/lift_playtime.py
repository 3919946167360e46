"""Episodes of play for pretraining, and which of their steps had contact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wmpo_ray.core.interfaces import Play
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.environments.lift.lift_environment import LiftEnvironment
from wmpo_ray.environments.lift.lift_play import LiftPlay

CHUNK_SIZE = 100  # scenes that are stepped together
NEAR = np.array([0.04, 0.04, 0.045])  # metres between hand and cube
MOVED = 0.002  # metres that the cube moves in a step


def play_in_chunks(num: int, horizon: int, seed: int, chunk_size: int = CHUNK_SIZE) -> Iterator[Play]:
    """Generate play, `chunk_size` scenes at a time; reproducible from `seed`."""
    environment = LiftEnvironment(horizon, ends_on_success=False)
    for first in range(0, num, chunk_size):
        yield _play_chunk(environment, min(chunk_size, num - first), seed, first)


def _play_chunk(environment: LiftEnvironment, n: int, seed: int, first: int) -> Play:
    rng = np.random.default_rng([seed, first])
    environment.restore(seeded_starts(rng.integers(0, 2**40, n)))
    players = [LiftPlay(np.random.default_rng([seed, first, i])) for i in range(n)]
    frames, actions, seen = [environment.render()], [], [environment.contacts()]
    for _ in range(environment.horizon):
        actions.append(environment.play(players))
        environment.advance(actions[-1])
        frames.append(environment.render())
        seen.append(environment.contacts())
    hand, cube, grasped = (np.stack(column, 1) for column in zip(*seen, strict=True))
    closing = np.stack(actions, 1)[..., -1] > 0
    contact = _contact(hand, cube, grasped, closing)
    return Play(np.stack(frames, 1), np.stack(actions, 1), contact, environment.instructions * n)


def _contact(hand: np.ndarray, cube: np.ndarray, grasped: np.ndarray, closing: np.ndarray) -> np.ndarray:
    """Steps [N, T] in which the cube moves, or fingers near it close or hold it.

    hand, cube: [N, T+1, 3] metres; grasped: [N, T+1] bool; closing: [N, T] bool.
    """
    near = (np.abs(hand - cube) < NEAR).all(-1)
    moved = np.abs(np.diff(cube, axis=1)).max(-1) > MOVED
    return ((near[:, :-1] | near[:, 1:]) & (grasped[:, 1:] | closing)) | moved
