"""Undirected play around the cube: the broad data that a world model of the small Lift is pretrained on.

Clumsy attempts with an error of their own each, way-points, random grips. Contact decides and is rare, so that near misses
are sought on purpose, and a hand that stays closed around nothing.
"""

from __future__ import annotations

import numpy as np

from wmpo_ray.environments.lift.lift_scene import LiftScene, to_unit
from wmpo_ray.environments.lift.lift_settings import BOX

KINDS = ("attempt", "attempt", "attempt", "wander", "hover")
LOWEST = 0.805  # metres that the fingers may go down to
_LOW, _HIGH = BOX[:, 0] + [0.01, 0.01, 0.005], BOX[:, 1] - [0.01, 0.01, 0.01]


class LiftPlay:
    """One player. It is as quick, exact and stubborn as it was born, and wants something new now and then."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.speed = rng.choice([0.03, 0.05, 0.08, 0.2])  # metres in an action
        self.noise = rng.choice([0.001, 0.004, 0.01, 0.02])  # metres
        self.stubborn = rng.random() < 0.5
        self.grip, self.hover = -1.0, 0.0
        self._want_anew()

    def act(self, scene: LiftScene) -> np.ndarray:
        """Action [4] float32 in [-1, 1]."""
        rng, hand, cube, held = self.rng, scene.hand, scene.cube_position, scene.grasped()
        self.timer += 1
        if self.kind == "attempt":
            target = self._attempt(hand, cube, held)
        elif self.kind == "hover":
            target = cube + self.offset * 2 + [0, 0, self.hover]
            if self.timer > 5:
                self._want_anew()
        else:
            target = self._wander(hand, held)
        if rng.random() < 0.04:
            self.grip = -self.grip
        step = target - hand
        step = step * min(1.0, self.speed / max(float(np.abs(step).max()), 1e-6))
        target = hand + step + rng.normal(0, 1, 3) * self.noise
        if rng.random() < 0.03:
            target = self._anywhere()
        return np.clip(np.append(to_unit(target), self.grip * rng.uniform(0.05, 1)), -1, 1).astype(np.float32)

    def _want_anew(self) -> None:
        rng = self.rng
        self.kind, self.stage, self.timer, self.closing = str(rng.choice(KINDS)), "over", 0, 0
        errors = [0.003, 0.010, 0.018]
        self.offset = np.append(rng.normal(0, 1, 2) * rng.choice(errors), rng.normal() * rng.choice(errors))
        self.early = max(rng.normal(0, 0.015), 0.0)  # metres from the goal where it closes already
        self.patience = int(rng.integers(0, 5))  # actions between closing and lifting
        self.grip = -1.0 if rng.random() < 0.8 else 1.0
        self.point = self._anywhere()
        self.lift_to, self.hover = rng.uniform(0.85, 0.91), rng.uniform(0.03, 0.06)
        self.up = np.zeros(3)

    def _anywhere(self) -> np.ndarray:
        return self.rng.uniform(_LOW, _HIGH)

    def _attempt(self, hand: np.ndarray, cube: np.ndarray, held: bool) -> np.ndarray:
        goal = cube + self.offset
        goal[2] = max(goal[2], LOWEST)
        if self.stage == "over" and (np.abs(hand[:2] - goal[:2]).max() < 0.02 or self.timer > 8):
            self.stage = "down"
        if self.stage == "down" and (np.abs(hand - goal).max() < 0.01 + self.early or self.timer > 14):
            self.stage = "close"
        if self.stage == "close":
            self.grip = 1.0
            self.closing += 1
            if self.closing > self.patience:
                self.stage, self.up = "lift", hand.copy()
        if self.stage == "lift":
            return self._lift(hand, held)
        return goal + [0, 0, self.hover] if self.stage == "over" else goal

    def _lift(self, hand: np.ndarray, held: bool) -> np.ndarray:
        beside = self.offset[:2] * 2 if held else np.zeros(2)
        target = np.append(self.up[:2] + beside, self.lift_to)
        if hand[2] > self.lift_to - 0.02:
            luck = self.rng.random()
            if held and luck < 0.5:
                self.kind, self.point, self.grip = "wander", self._anywhere(), 1.0
            elif held and luck < 0.65:
                self.grip = -1.0
            elif not held and (luck < 0.3 or not self.stubborn):
                closed = self.stubborn
                self._want_anew()
                self.grip = 1.0 if closed else self.grip
        return target

    def _wander(self, hand: np.ndarray, held: bool) -> np.ndarray:
        target = self.point
        if np.abs(hand - target).max() < 0.02 or self.timer > 9:
            grip = self.grip
            self._want_anew()
            if held and self.rng.random() < 0.7:
                self.kind, self.grip = "wander", grip
        return target
