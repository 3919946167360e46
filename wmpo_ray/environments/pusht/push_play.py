"""Undirected play with the T: the broad data that a world model of PushT is pretrained on.

Pushes from points and in directions drawn at random, of any length, and places that the agent goes to whatever is in its
way. What decides is contact, so most of the time is spent beside the T.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from wmpo_ray.core.interfaces import Play
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.environments.pusht.agent_path import around, point_ahead
from wmpo_ray.environments.pusht.push_field import Field
from wmpo_ray.environments.pusht.push_simulation import Scene
from wmpo_ray.environments.pusht.pusht_environment import PushTEnvironment
from wmpo_ray.environments.pusht.pusht_settings import PushTConfig
from wmpo_ray.environments.pusht.tee import (
    AGENT_RADIUS,
    MIDDLE,
    corner_error,
    distance_to_tee,
    outline,
    rotate,
    to_board,
)

CHUNK_SIZE = 64  # scenes that are stepped together
NEVER = 0.999  # coverage at which play ends
NEAR, MOVED = 6.0, 0.5  # units: the agent beside the T; the T moved in a step
GAP = 4.0  # between agent and T at the start of a push
HOMEWARD = 0.7  # share of the pushes that go towards the field's middle, else the T would leave it
TILT = np.radians(35.0)
AWAY, STRAY = 0.25, 0.06  # share of what is wanted that is a mere place; of actions that aim anywhere


class PushPlayer:
    """One player, with a pace and an inexactness of its own."""

    def __init__(self, field: Field, rng: np.random.Generator):
        self.field, self.rng = field, rng
        self.pace = float(rng.choice([12.0, 25.0, 45.0, 80.0]))  # units that its target is ahead
        self.noise = float(rng.choice([0.5, 2.0, 6.0]))  # units
        self.patience = 0  # actions before it wants something else
        self.start: np.ndarray | None = None  # of a push, on the T [2]; None: it goes to `end`
        self.end = np.zeros(2)

    def target(self, scene: Scene) -> np.ndarray:
        """Where the agent shall go next [2], on the board."""
        agent, pose = np.array(scene.agent), np.array(scene.block)
        if self.patience <= 0:
            self._want_anew(pose)
        self.patience -= 1
        if self.rng.random() < STRAY:
            return self._anywhere()
        if self.start is not None:
            start = to_board(self.start[None], pose)[0]
            if np.hypot(*(agent - start)) > GAP + 2:
                found = point_ahead(around(agent, start, pose), self.pace)
                return found + self.rng.normal(0, self.noise, 2)
            self.start, self.end = None, self.field.clip(agent + self._push(agent, pose), 2.0)
        found = point_ahead(np.stack([agent, self.end]), self.pace)
        if np.hypot(*(agent - self.end)) < 4.0:
            self.patience = 0
        return found + self.rng.normal(0, self.noise, 2)

    def _want_anew(self, pose: np.ndarray) -> None:
        self.patience, self.start, self.end = int(self.rng.integers(5, 14)), None, self._anywhere()
        if self.rng.random() < AWAY:
            return
        points, normals = outline(10.0)
        middle = self.field.corner + self.field.side / 2 - to_board(MIDDLE[None], pose)[0]
        starts = points + normals * (AGENT_RADIUS + GAP)
        usable = self.field.contains(to_board(starts, pose), 1.0)
        if self.rng.random() < HOMEWARD:
            usable &= rotate(-normals, pose[2:]) @ middle > 0
        if usable.any():
            self.start = starts[self.rng.choice(np.flatnonzero(usable))]  # on the T, so that it moves with it

    def _push(self, agent: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """A way [2] into the T from where the agent stands."""
        points, normals = outline(4.0)
        nearest = int(np.argmin(np.hypot(*(to_board(points, pose) - agent).T)))
        inward = rotate(-normals[nearest : nearest + 1], pose[2:])
        return rotate(inward, self.rng.uniform(-TILT, TILT))[0] * (GAP + self.rng.uniform(2, 60))

    def _anywhere(self) -> np.ndarray:
        return self.field.corner + self.rng.uniform(0.02, 0.98, 2) * self.field.side


def play_in_chunks(config: PushTConfig, num: int, seed: int, chunk_size: int = CHUNK_SIZE) -> Iterator[Play]:
    """Generate play, `chunk_size` scenes at a time; reproducible from `seed`."""
    environment = PushTEnvironment(config.model_copy(update={"success_coverage": NEVER}))
    for first in range(0, num, chunk_size):
        yield _play_chunk(environment, min(chunk_size, num - first), seed, first)


def _play_chunk(environment: PushTEnvironment, n: int, seed: int, first: int) -> Play:
    rng = np.random.default_rng([seed, first])
    environment.restore(seeded_starts(rng.integers(0, 2**40, n)))
    players = [PushPlayer(environment.field, np.random.default_rng([seed, first, i])) for i in range(n)]
    frames, actions, scenes = [environment.render()], [], [environment.scenes()]
    for _ in range(environment.horizon):
        targets = np.stack([player.target(scene) for player, scene in zip(players, scenes[-1], strict=True)])
        actions.append(environment.field.to_actions(targets))
        environment.advance(actions[-1])
        frames.append(environment.render())
        scenes.append(environment.scenes())
    contact = np.stack([_contact(*both) for both in pairwise(scenes)], 1)
    return Play(np.stack(frames, 1), np.stack(actions, 1), contact, environment.instructions * n)


def _contact(before: list[Scene], after: list[Scene]) -> np.ndarray:
    """Which T [N] moved between two lists of scenes, or has the agent beside it."""
    found = []
    for one, other in zip(before, after, strict=True):
        pose, last = np.array(other.block), np.array(one.block)
        near = distance_to_tee(np.array([other.agent]), pose)[0] < AGENT_RADIUS + NEAR
        found.append(near or float(corner_error(pose, last)) > MOVED)
    return np.array(found, bool)
