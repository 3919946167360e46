"""Undirected play: the broad data that the shipped world model is pretrained on.

A scripted hand wanders between way-points (block, pockets, wall, anywhere), opens and closes its gripper, and
never aims at the instruction. No goal, no success label and no episode end: the analogue of the large robot data
sets that the paper pretrains on. Contact decides success and is rare, so near misses are sought on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wmpo_ray.core.interfaces import Play
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.environments.pocket.geometry import BLOCK_HALF, FRAME_SIZE, POCKET_TOLERANCE, WALL_X
from wmpo_ray.environments.pocket.rendering import draw

CHUNK_SIZE = 1000  # scenes that are stepped together; others give other episodes


def collect_play(num_videos: int, horizon: int, seed: int, chunk_size: int = CHUNK_SIZE) -> Play:
    """All episodes of `play_in_chunks`."""
    parts = list(play_in_chunks(num_videos, horizon, seed, chunk_size))
    frames, actions, contact, _ = (list(column) for column in zip(*parts, strict=True))
    texts = tuple(text for part in parts for text in part.instructions)
    return Play(np.concatenate(frames), np.concatenate(actions), np.concatenate(contact), texts)


def play_in_chunks(
    num_videos: int,
    horizon: int,
    seed: int,
    chunk_size: int = CHUNK_SIZE,
    environment: type[PocketEnvironment] = PocketEnvironment,
) -> Iterator[Play]:
    """Generate play, `chunk_size` scenes at a time; reproducible from `seed`. Contact: grasp, near miss, release or touch
    of the wall. `environment`: of the task whose scenes are played in."""
    for first in range(0, num_videos, chunk_size):
        size = min(chunk_size, num_videos - first)
        yield _play_chunk(environment(horizon, ends_on_success=False), size, np.random.default_rng([seed, first]))


def _play_chunk(env: PocketEnvironment, n: int, rng: np.random.Generator) -> Play:
    env.reset(rng.integers(0, 2**62, n), render=False)
    _vary_start(env, rng)
    hand = _Hand(env, rng)
    states, actions, contact = [env.state()], [], []
    for _ in range(env.horizon):
        action = hand.action(env)
        before = env.state()
        env.step(action, render=False)
        states.append(env.state())
        actions.append(action)
        contact.append(_touches(before, states[-1]))
    backdrop = env.backdrop()
    frames = np.stack([draw(backdrop, *state) for state in states], 1)
    return Play(frames, np.stack(actions, 1), np.stack(contact, 1), tuple(env.instruction))


def _vary_start(env: PocketEnvironment, rng: np.random.Generator) -> None:
    """A quarter of the scenes start with the block held, another with a closed, empty gripper."""
    n = len(env.goal)
    pick = rng.random(n)
    held = pick < 0.25
    env.held |= held
    env.closed |= pick < 0.5
    env.block[held] = rng.uniform([1.5, 1.5], [9.0, 14.5], (held.sum(), 2))
    env.gripper[held] = env.block[held]


def _touches(before, after) -> np.ndarray:
    """Steps [N] whose outcome hangs on contact.

    Any change of the grip near the block, a closed and empty gripper passing over it, a held block at the wall.
    """
    near = np.abs(after.gripper - after.block).max(1) < 2.6
    grip = near & ((before.closed != after.closed) | (after.closed & ~after.held))
    wall = after.held & (np.abs(after.block[:, 0] + BLOCK_HALF - WALL_X) < 1.5)
    return grip | (before.held != after.held) | wall


class _Hand:
    """The state of N wandering hands: a way-point, the steps left for it, a speed and a grip each."""

    def __init__(self, env: PocketEnvironment, rng: np.random.Generator):
        n = len(env.goal)
        self.rng = rng
        # Policies fail by carrying nothing: half of the hands stay closed when they have missed.
        self.stubborn = rng.random(n) < 0.5
        self.noise = rng.choice([0.05, 0.2, 0.4, 0.8], n)[:, None]
        self.speed = rng.choice([1.0, 1.5, 2.5, 5.0], n)[:, None] * rng.uniform(0.8, 1.1, (n, 1))
        self.way_point = np.zeros((n, 2))
        self.steps_left = np.zeros(n, np.int64)
        self.grip = np.where(env.closed, 1.0, -1.0)

    def action(self, env: PocketEnvironment) -> np.ndarray:
        rng, n = self.rng, len(env.goal)
        arrived = (np.abs(self.way_point - env.gripper).max(1) < 0.7) | (self.steps_left <= 0)
        self._choose_grip(env, arrived)
        self.way_point = np.where(arrived[:, None], self._choose_way_point(env), self.way_point)
        self.steps_left = np.where(arrived, rng.integers(3, 14, n), self.steps_left - 1)
        delta = self.way_point - env.gripper
        delta *= np.minimum(1, self.speed / np.maximum(np.abs(delta).max(1, keepdims=True), 1e-6))
        position = env.gripper + delta + rng.normal(0, 1, (n, 2)) * self.noise
        # A leap now and then: an untrained policy asks for anything.
        position = np.where(rng.random((n, 1)) < 0.03, rng.uniform(0, FRAME_SIZE, (n, 2)), position)
        half = FRAME_SIZE / 2
        grip = self.grip * rng.uniform(0.02, 1, n)
        return np.clip(np.concatenate([(position - half) / half, grip[:, None]], 1), -1, 1).astype(np.float32)

    def _choose_way_point(self, env: PocketEnvironment) -> np.ndarray:
        rng, n = self.rng, len(env.goal)
        kind = rng.random(n)[:, None]
        pocket = env.pocket_y[np.arange(n), rng.integers(0, 2, n)]
        nearest = env.pocket_y[np.arange(n), env._nearest_pocket(env.gripper[:, 1])]
        # Half of the visits to a pocket aim at its edge, where half a pixel decides between passing and jamming.
        edge = rng.choice([0.0, POCKET_TOLERANCE, -POCKET_TOLERANCE], n, p=[0.5, 0.25, 0.25])
        mouth = np.stack([np.full(n, 8.0), pocket + edge], 1)
        inside = np.stack([rng.uniform(12.5, 14.5, n), nearest + edge], 1)
        at_wall = np.stack([np.full(n, 12.0), rng.uniform(1, 15, n)], 1)
        anywhere = rng.uniform(1, 15, (n, 2))
        # Near misses: beside the block by 0.6 to 1.9 pixels.
        offset = rng.uniform(0.6, 1.9, (n, 2)) * rng.choice([-1, 0, 1], (n, 2))
        block = env.block + np.where(rng.random((n, 1)) < 0.5, offset, 0.0)
        point = np.where(kind < 0.45, np.where(env.held[:, None], mouth, block), inside)
        point = np.where(kind < 0.70, point, at_wall)
        point = np.where(kind < 0.78, point, anywhere)
        return point + rng.normal(0, 1, (n, 2)) * rng.choice([0.1, 0.5, 1.5], n)[:, None]

    def _choose_grip(self, env: PocketEnvironment, arrived: np.ndarray) -> None:
        rng, n = self.rng, len(env.goal)
        close_by = np.abs(env.block - env.gripper).max(1) < 2.2
        draw_ = rng.random(n)
        by_block = np.where(draw_ < 0.8, 1.0, -1.0)
        holding = np.where(draw_ < 0.15, -1.0, 1.0)
        away = np.where(draw_ < 0.35, 1.0, -1.0)
        chosen = np.where(env.held, holding, np.where(close_by, by_block, away))
        # A closed, empty gripper near the block opens first, so that it can try again.
        empty = env.closed & ~env.held
        chosen = np.where(empty & close_by & (draw_ < 0.7), -1.0, chosen)
        chosen = np.where(empty & self.stubborn & (rng.random(n) < 0.85), 1.0, chosen)
        self.grip = np.where(arrived, chosen, self.grip)
        flips = rng.random(n) < np.where(self.stubborn & empty, 0.015, 0.05)
        self.grip = np.where(flips, -self.grip, self.grip)
