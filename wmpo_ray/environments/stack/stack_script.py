"""The expert of the small Stack: takes one cube, brings it over the other, down, open. It begins again where it was lost."""

from __future__ import annotations

import numpy as np

from wmpo_ray.environments.stack.stack_settings import BOX
from wmpo_ray.environments.tabletop.table_scene import TableScene

HOVER, BESIDE = 0.05, 0.015  # metres above the cube on the way to it, and beside it where the hand goes down
LOW = 0.012  # metres above the cube's middle where the hand closes
CLOSING = 3  # actions until the fingers hold the cube
CARRY_AT = 0.905  # metres
CLEAR = 0.875  # metres that the cube's middle is at before it moves sideways
OVER_WITHIN, ON, GAP = 0.009, 0.045, 0.006  # metres: beside the other cube's middle; between middles; between cubes
LOST = 0.05  # metres above a cube that is not held
GRIP, GRIP_NOISE = 0.6, 0.1
CLOSED = ("close", "lift", "carry", "lower")


class StackScript:
    """What the expert remembers of one scene."""

    def __init__(self) -> None:
        self.stage = "over"
        self.closing = 0

    def act(self, scene: TableScene, rng: np.random.Generator, noise: float) -> np.ndarray:
        """Action [4] float32 in [-1, 1]; `noise`: standard deviation in metres of its target."""
        target = self._target(scene) + rng.normal(0, 1, 3) * noise
        grip = (GRIP if self.stage in CLOSED else -GRIP) + rng.normal() * GRIP_NOISE
        return np.clip(np.append(BOX.to_unit(target), grip), -1, 1).astype(np.float32)

    def _target(self, scene: TableScene) -> np.ndarray:
        hand, (upper, lower) = scene.hand, scene.cube_positions
        self._next_stage(hand, upper, lower, scene.grasped())
        goal = hand + lower - upper + [0, 0, ON + GAP]  # where the hand is when the cube is on the other
        if self.stage == "over":
            return upper + [0, 0, HOVER]
        if self.stage == "lift":
            return np.array([hand[0], hand[1], CARRY_AT])
        if self.stage == "carry":
            return np.array([goal[0], goal[1], CARRY_AT])
        return {"lower": goal, "open": hand + [0, 0, HOVER / 2]}.get(self.stage, upper)

    def _next_stage(self, hand: np.ndarray, upper: np.ndarray, lower: np.ndarray, held: bool) -> None:
        aside = np.abs(upper - lower)[:2].max()
        if self.stage in ("lift", "carry", "lower", "open") and not held and hand[2] > upper[2] + LOST:
            self.stage = "over"
        if self.stage == "over" and np.abs(hand[:2] - upper[:2]).max() < BESIDE:
            self.stage = "down"
        if self.stage == "down" and hand[2] - upper[2] < LOW:
            self.stage, self.closing = "close", 0
        elif self.stage == "close":
            self.closing += 1
            if self.closing >= CLOSING:
                self.stage = "lift"
        elif self.stage == "lift" and upper[2] > CLEAR:
            self.stage = "carry"
        elif self.stage == "carry" and aside < OVER_WITHIN:
            self.stage = "lower"
        elif self.stage == "lower" and upper[2] - lower[2] < ON + 2 * GAP:
            self.stage = "open"
