"""Undirected play around a cube: the broad data that a world model of a small tabletop task is pretrained on.

Clumsy attempts with an error of their own each, way-points, random grips. Contact decides and is rare, so that near misses
are sought on purpose, and a hand that stays closed around nothing.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from wmpo_ray.environments.tabletop.box import Box
from wmpo_ray.environments.tabletop.table_scene import TableScene

KINDS = ("attempt", "attempt", "attempt", "wander", "hover")
LOWEST = 0.805  # metres that the fingers may go down to
ERRORS = (0.003, 0.010, 0.018)  # metres: how exact an attempt is


class TablePlayer:
    """One player. It is as quick, exact and stubborn as it was born, and wants something new now and then."""

    lift_range: ClassVar[tuple[float, float]]  # metres, between which a cube that was taken is raised
    going_on: ClassVar[float] = 0.5  # share of the times that a raised cube is taken somewhere

    def __init__(self, box: Box, rng: np.random.Generator):
        self.box, self.rng = box, rng
        self._low, self._high = box.low + np.array([0.01, 0.01, 0.005]), box.high - np.array([0.01, 0.01, 0.01])
        self.speed = rng.choice([0.03, 0.05, 0.08, 0.2])  # metres in an action
        self.noise = rng.choice([0.001, 0.004, 0.01, 0.02])  # metres
        self.stubborn = rng.random() < 0.5
        self.grip, self.hover = -1.0, 0.0
        self.want_anew()

    def act(self, scene: TableScene) -> np.ndarray:
        """Action [4] float32 in [-1, 1]."""
        rng, hand = self.rng, scene.hand
        self.timer += 1
        target = self.want(scene, hand, scene.grasped())
        if rng.random() < 0.04:
            self.grip = -self.grip
        step = target - hand
        step = step * min(1.0, self.speed / max(float(np.abs(step).max()), 1e-6))
        target = hand + step + rng.normal(0, 1, 3) * self.noise
        if rng.random() < 0.03:
            target = self._anywhere()
        grip = self.grip * rng.uniform(0.05, 1)
        return np.clip(np.append(self.box.to_unit(target), grip), -1, 1).astype(np.float32)

    def want(self, scene: TableScene, hand: np.ndarray, held: bool) -> np.ndarray:
        """Where it wants its hand to be, [3] in metres; a subclass knows more things to want."""
        if self.kind == "attempt":
            return self._attempt(hand, scene.cube, held)
        if self.kind == "hover":
            target = scene.cube + self.offset * 2 + [0, 0, self.hover]
            if self.timer > 5:
                self.want_anew()
            return target
        return self._wander(hand, held)

    def want_anew(self) -> None:
        """Make up something else to do."""
        rng = self.rng
        self.kind, self.stage, self.timer, self.closing = str(rng.choice(KINDS)), "over", 0, 0
        self.offset = np.append(rng.normal(0, 1, 2) * rng.choice(ERRORS), rng.normal() * rng.choice(ERRORS))
        self.early = max(rng.normal(0, 0.015), 0.0)  # metres from the goal where it closes already
        self.patience = int(rng.integers(0, 5))  # actions between closing and lifting
        self.grip = -1.0 if rng.random() < 0.8 else 1.0
        self.point = self._anywhere()
        self.lift_to, self.hover = rng.uniform(*self.lift_range), rng.uniform(0.03, 0.06)
        self.up = np.zeros(3)

    def _anywhere(self) -> np.ndarray:
        return self.rng.uniform(self._low, self._high)

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
            if held and luck < self.going_on:
                self.go_on_with_it()
            elif held and luck < self.going_on + 0.15:
                self.grip = -1.0
            elif not held and (luck < 0.3 or not self.stubborn):
                closed = self.stubborn
                self.want_anew()
                self.grip = 1.0 if closed else self.grip
        return target

    def go_on_with_it(self) -> None:
        """It has the cube up: what now."""
        self.kind, self.point, self.grip = "wander", self._anywhere(), 1.0

    def _wander(self, hand: np.ndarray, held: bool) -> np.ndarray:
        target = self.point
        if np.abs(hand - target).max() < 0.02 or self.timer > 9:
            grip = self.grip
            self.want_anew()
            if held and self.rng.random() < 0.7:
                self.kind, self.grip = "wander", grip
        return target
