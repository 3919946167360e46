"""The parts that scripts are made of: bring the hand somewhere, carry an object somewhere, hold still, pick up, let go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np

from wmpo_ray.environments.robosuite.experts.expert import Expert, Part
from wmpo_ray.environments.robosuite.experts.rotations import (
    DOWN,
    about_z,
    axis_angle,
    equivalents,
    hand_yaw,
    heading,
    wrap,
)
from wmpo_ray.environments.robosuite.experts.scene import Pose
from wmpo_ray.environments.robosuite.experts.servo import PositionServo, rotation_action

OPEN, CLOSE = -1.0, 1.0
YAW_LIMIT = 2.0  # rad, of the hand: the last joint ends not far beyond
ABOUT_ABOVE = 0.03  # m
JAMMED = 0.3  # rad that a carried object is tilted
LOST_AFTER = 3  # steps in a row without contact of both pads, after which an object is lost
HOVER_WITHIN = np.array([0.012, 0.012, 0.03])  # m; how high a hover is matters little
CLOSE_STEPS, OPEN_STEPS = 10, 5  # at most; the gripper needs 8 steps from open to closed
FIRM_STEPS = 1  # more, which make the grip firm


class Target(NamedTuple):
    position: np.ndarray  # [3] m
    yaw: float = 0.0  # rad


class Hold(NamedTuple):
    """How an object is held: where the grip site is above or beside its origin, in the world, and the hand's yaw."""

    offset: np.ndarray
    yaw: float


class Manipulation(Expert):
    """The moves of an expert. Targets are functions of the scene, so that they follow what moves."""

    grip = OPEN

    @abstractmethod
    def attempt(self) -> Part:
        """One attempt at what the scene, as it is now, asks for; or some steps of rest where it asks for nothing."""

    def script(self) -> Generator[np.ndarray, None, None]:
        while True:
            has_acted = False
            for action in self.attempt():
                has_acted = True
                yield action
            if not has_acted:  # what is held cannot be carried as it lies in the hand; the scene would never change
                yield from self.release()

    def hand_action(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Action [7] with a position part [3] that turns the hand to a rotation [3, 3]."""
        return np.concatenate([position, rotation_action(rotation, self.scene.hand().rotation), [self.grip]])

    def upright(self, yaw: float) -> np.ndarray:
        """The rotation [3, 3] of a hand with this yaw that is ready to grasp: it points down."""
        return about_z(yaw) @ DOWN

    def yaw(self) -> float:
        return hand_yaw(self.scene.hand().rotation)

    def move_hand(
        self,
        target: Callable[[], Target],
        within: np.ndarray | float,
        turn_within: float = 0.15,
        max_steps: int = 60,
        servo: PositionServo | None = None,
    ) -> Part:
        """Until the grip site is `within` (m, along each axis) and `turn_within` (rad) of the target.

        Returns False after `max_steps`.
        """
        servo = servo or PositionServo()
        for _ in range(max_steps):
            wanted, hand = target(), self.scene.hand()
            error, upright = wanted.position - hand.position, self.upright(wanted.yaw)
            turn = float(np.linalg.norm(axis_angle(upright @ hand.rotation.T)))
            if np.all(np.abs(error) <= within) and turn <= turn_within:
                return True
            yield self.hand_action(servo.action(error), upright)
        return False

    def carry(
        self,
        model: Any,
        pose: Callable[[], Pose],
        target: Callable[[], Target],
        within: np.ndarray | float,
        turn_within: float = np.inf,
        max_steps: int = 60,
        settled: int = 1,
        stray: float = np.inf,
        servo: PositionServo | None = None,
    ) -> Part:
        """Bring the pose of a held object to a target by its own error, and upright, for `settled` steps in a row.

        Its yaw is left alone where `turn_within` is infinite. Returns False after `max_steps`, once the object is lost,
        and where it strays: farther than `stray` m from the target in the plane, or tilted because something is in its
        way.
        """
        servo, missing, there = servo or PositionServo(), 0, 0
        for _ in range(max_steps):
            missing = 0 if self.scene.holds(model) else missing + 1
            now, wanted = pose(), target()
            error, turn = wanted.position - now.position, abs(wrap(wanted.yaw - heading(now.rotation)))
            arrived = bool(np.all(np.abs(error) <= within)) and turn <= turn_within
            there = there + 1 if arrived else 0
            if there >= settled:
                return True
            if missing >= LOST_AFTER or np.linalg.norm(error[:2]) > stray:
                return False
            if np.isinf(turn_within):
                yield self.hand_action(servo.action(error), self.upright(self.yaw()))
                continue
            if np.arccos(np.clip(now.rotation[2, 2], -1, 1)) > JAMMED:
                return False
            turned = rotation_action(about_z(wanted.yaw), now.rotation)
            yield np.concatenate([servo.action(error), turned, [self.grip]])
        return False

    def stay(self, steps: int, grip: float | None = None, until: Callable[[], bool] | None = None) -> Part:
        """Hold the hand where it is while the gripper opens or closes; returns True early where `until` is."""
        self.grip = self.grip if grip is None else grip
        here, servo = self.scene.hand(), PositionServo()
        for _ in range(steps):
            yield self.hand_action(servo.action(here.position - self.scene.hand().position), here.rotation)
            if until is not None and until():
                return True
        return until is None

    def pick(
        self,
        model: Any,
        grasp: Callable[[], Target],
        hover: float = 0.06,
        within: np.ndarray | float = 0.006,
        turn_within: float = 0.15,
        travel: float = -np.inf,
        hover_within: np.ndarray = HOVER_WITHIN,
    ) -> Part:
        """Open, go above the grasp, go down, close; returns whether the object is held.

        `travel`: a height, m, that the grip site keeps until it is about above the grasp.
        """
        self.stage, self.grip = "approach", OPEN

        def above() -> Target:
            target = raised(grasp(), hover)
            far = np.linalg.norm((target.position - self.scene.hand().position)[:2]) > ABOUT_ABOVE
            return raised(target, max(0.0, travel - target.position[2])) if far else target

        yield from self.move_hand(above, hover_within, turn_within)
        self.stage = "descend"
        yield from self.move_hand(grasp, within, max_steps=25)
        self.stage = "grasp"
        return (yield from self.close_on(model))

    def keeps(self, model: Any) -> bool:
        """Whether an object is held, from now on with a closing hand: a script may have begun just here."""
        held = self.scene.holds(model)
        self.grip = CLOSE if held else self.grip
        return held

    def close_on(self, model: Any) -> Part:
        """Close until both pads touch the object, and a step longer; returns whether they do."""
        yield from self.stay(CLOSE_STEPS, CLOSE, until=lambda: self.scene.holds(model))
        yield from self.stay(FIRM_STEPS)
        return self.scene.holds(model)

    def rise(self, height: float, within: float = 0.02, max_steps: int = 40) -> Part:
        """Straight up (or down) until the grip site is at a height, m; the hand keeps its rotation."""
        first, servo = self.scene.hand(), PositionServo()
        target = np.array([*first.position[:2], height])
        for _ in range(max_steps):
            error = target - self.scene.hand().position
            if abs(error[2]) <= within:
                return True
            yield self.hand_action(servo.action(error), first.rotation)
        return False

    def release(self, retreat: float = 0.08, open_steps: int = OPEN_STEPS) -> Part:
        """Open and go straight up by `retreat` m."""
        self.stage = "release"
        yield from self.stay(open_steps, OPEN)
        self.stage = "retreat"
        return (yield from self.rise(self.scene.hand().position[2] + retreat))

    def rest(self) -> Part:
        """Stay here for a while; the script looks at the scene again afterwards."""
        self.stage = "done"
        return (yield from self.stay(10))

    def nearest_yaw(self, yaw: float, period: float) -> float:
        """The equivalent of a yaw that the hand can take on with the least turn."""
        now = self.yaw()
        return min(equivalents(yaw, period, YAW_LIMIT), key=lambda option: abs(option - now))


def raised(target: Target, height: float) -> Target:
    return Target(target.position + np.array([0.0, 0.0, height]), target.yaw)
