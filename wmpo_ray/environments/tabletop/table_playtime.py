"""Episodes of play at a table for pretraining, and which of their steps had contact."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from wmpo_ray.core.interfaces import Play
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.environments.tabletop.table_environment import Contacts, Player, TableEnvironment

CHUNK_SIZE = 100  # scenes that are stepped together
NEAR = np.array([0.04, 0.04, 0.045])  # metres between the hand and the cube that it has to take
MOVED = 0.002  # metres that a cube moves in a step
MakePlayer = Callable[[np.random.Generator], Player]


def play_in_chunks(
    environment: TableEnvironment, make_player: MakePlayer, num: int, seed: int, chunk_size: int = CHUNK_SIZE
) -> Iterator[Play]:
    """Generate play, `chunk_size` scenes at a time; reproducible from `seed`. The environment must not end on success."""
    for first in range(0, num, chunk_size):
        yield _play_chunk(environment, make_player, min(chunk_size, num - first), seed, first)


def _play_chunk(environment: TableEnvironment, make_player: MakePlayer, n: int, seed: int, first: int) -> Play:
    rng = np.random.default_rng([seed, first])
    environment.restore(seeded_starts(rng.integers(0, 2**40, n)))
    players = [make_player(np.random.default_rng([seed, first, i])) for i in range(n)]
    frames, actions, seen = [environment.render()], [], [environment.contacts()]
    for _ in range(environment.horizon):
        actions.append(environment.play(players))
        environment.advance(actions[-1])
        frames.append(environment.render())
        seen.append(environment.contacts())
    closing = np.stack(actions, 1)[..., -1] > 0
    contact = _contact(Contacts(*(np.stack(column, 1) for column in zip(*seen, strict=True))), closing)
    return Play(np.stack(frames, 1), np.stack(actions, 1), contact, environment.instructions * n)


def _contact(seen: Contacts, closing: np.ndarray) -> np.ndarray:
    """Steps [N, T] in which a cube moves, or fingers near the first one close or hold it.

    seen: hand [N, T+1, 3], cubes [N, T+1, cubes, 3], grasped [N, T+1]; closing: [N, T] bool.
    """
    near = (np.abs(seen.hand - seen.cubes[:, :, 0]) < NEAR).all(-1)
    moved = np.abs(np.diff(seen.cubes, axis=1)).max((-2, -1)) > MOVED
    return ((near[:, :-1] | near[:, 1:]) & (seen.grasped[:, 1:] | closing)) | moved
