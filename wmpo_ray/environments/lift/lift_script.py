"""The expert of the small Lift: over the cube, down, close, up. It begins again where the cube was lost."""

from __future__ import annotations

import numpy as np

from wmpo_ray.environments.lift.lift_settings import BOX
from wmpo_ray.environments.tabletop.table_scene import TableScene

HOVER, OVER = 0.05, 0.015  # metres above the cube on the way to it, and beside it where the hand goes down
LOW = 0.012  # metres above the cube's middle where the hand closes
CLOSING = 3  # actions until the fingers hold the cube
LIFT_TO = 0.90  # metres
LOST = 0.05  # metres above a cube that is not held
GRIP, GRIP_NOISE = 0.6, 0.1


class LiftScript:
    """What the expert remembers of one scene."""

    def __init__(self) -> None:
        self.stage = "over"
        self.closing = 0

    def act(self, scene: TableScene, rng: np.random.Generator, noise: float) -> np.ndarray:
        """Action [4] float32 in [-1, 1]; `noise`: standard deviation in metres of its target."""
        target = self._target(scene) + rng.normal(0, 1, 3) * noise
        grip = (GRIP if self.stage in ("close", "lift") else -GRIP) + rng.normal() * GRIP_NOISE
        return np.clip(np.append(BOX.to_unit(target), grip), -1, 1).astype(np.float32)

    def _target(self, scene: TableScene) -> np.ndarray:
        hand, cube = scene.hand, scene.cube
        if self.stage == "lift" and not scene.grasped() and hand[2] > cube[2] + LOST:
            self.stage = "over"
        if self.stage == "over" and np.abs(hand[:2] - cube[:2]).max() < OVER:
            self.stage = "down"
        if self.stage == "down" and hand[2] - cube[2] < LOW:
            self.stage, self.closing = "close", 0
        elif self.stage == "close":
            self.closing += 1
            if self.closing >= CLOSING:
                self.stage = "lift"
        if self.stage == "over":
            return cube + [0, 0, HOVER]
        if self.stage == "lift":
            return np.array([hand[0], hand[1], LIFT_TO])
        return cube
