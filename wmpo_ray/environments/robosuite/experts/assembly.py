"""The expert of MimicGen's ThreePieceAssembly: a piece is put into a frame, and another one over it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from wmpo_ray.environments.robosuite.experts.expert import Part
from wmpo_ray.environments.robosuite.experts.moves import Manipulation, Target
from wmpo_ray.environments.robosuite.experts.rotations import heading, rotation_about, wrap
from wmpo_ray.environments.robosuite.experts.scene import Pose
from wmpo_ray.environments.robosuite.experts.servo import PositionServo

QUARTER, HALF = np.pi / 2, np.pi
TRAVEL = 1.02  # m: the grip site's height, above everything that stands
LIFT_FAR, LIFT = 1.0, 1.075  # m: how high the arm can lift far from its base, and what clears the pieces
NEAR_X = 0.12  # m: up to there it can lift to the full height
GRASP_WITHIN, GRASP_TURN = np.array([0.006, 0.006, 0.006]), 0.10  # m, rad
ALIGN_HEIGHT, ALIGN_WITHIN, ALIGN_TURN = 0.088, np.array([0.004, 0.004, 0.008]), 0.04  # m above the seat, m, rad
COARSE, COARSE_TURN = np.array([0.02, 0.02, 0.02]), 0.15  # m, rad
DOWN_WITHIN = np.array([np.inf, np.inf, 0.006])  # m
LOWER_CAP, STRAY = 0.6, 0.012  # of an action for the way down; m beside it, where the piece is lifted again
SEATED, LOW = 0.012, 0.02  # m from the seat in the plane, and above it
TILT_FROM, TILT_LENGTH, TILT_LIMIT = 0.69, 0.2, np.pi / 6  # m from the arm's base, m, rad


class Piece(NamedTuple):
    name: str  # of its attribute in the environment
    under: str  # what it goes on
    grasp: float  # m above its middle
    seat: float  # m: its height above the middle of what it goes on
    symmetry: float  # rad: turned by this it fits as well


PIECES = (Piece("piece_1", "base", 0.034, 0.032, QUARTER), Piece("piece_2", "piece_1", 0.062, 0.063, HALF))


class ThreePieceAssemblyExpert(Manipulation):
    def attempt(self) -> Part:
        missing = [piece for piece in PIECES if not self._seated(piece)]
        return self._seat(missing[0]) if missing else self.rest()

    def upright(self, yaw: float) -> np.ndarray:
        """Far from the arm's base, where its elbow is about straight, the fingers point outward."""
        outward = self.scene.hand().position - self.scene.env.robots[0].base_pos
        distance = float(np.linalg.norm(outward[:2]))
        tilt = min(float(np.arcsin(np.clip((distance - TILT_FROM) / TILT_LENGTH, 0, 1))), TILT_LIMIT)
        x, y, _ = outward / distance
        return rotation_about(np.array([y, -x, 0.0]), tilt) @ super().upright(yaw)

    def _seat(self, piece: Piece) -> Part:
        model, pose = self._model(piece), lambda: self._pose(piece.name)
        if not self.keeps(model):
            yaw = self.nearest_yaw(heading(pose().rotation) - QUARTER, HALF)

            def grasp() -> Target:
                return Target(pose().position + np.array([0.0, 0.0, piece.grasp]), yaw)

            if not (yield from self.pick(model, grasp, 0.08, GRASP_WITHIN, GRASP_TURN, TRAVEL)):
                return False
        seat, now = self._seat_position(piece), heading(pose().rotation)
        yaw = now + wrap(heading(self._pose(piece.under).rotation) - now, piece.symmetry)
        self.stage = "lift"
        yield from self.rise(LIFT if self.scene.hand().position[0] <= NEAR_X else LIFT_FAR, within=0.008)
        self.stage = "carry"
        x, y, z = pose().position
        for place, within in (
            ((min(x, NEAR_X), y, z), COARSE),
            ((min(x, NEAR_X), y, LIFT - piece.grasp), COARSE),
            ((seat[0], seat[1], LIFT - piece.grasp), COARSE),
        ):
            if not (yield from self._bring(piece, np.array(place), yaw, within, COARSE_TURN)):
                return False
        self.stage = "align"
        above = seat + np.array([0.0, 0.0, ALIGN_HEIGHT])
        if not (yield from self._bring(piece, above, yaw, ALIGN_WITHIN, ALIGN_TURN, settled=3)):
            return False
        self.stage = "lower"
        servo = PositionServo(cap=LOWER_CAP)
        if not (yield from self._bring(piece, seat, yaw, DOWN_WITHIN, np.pi, stray=STRAY, servo=servo)):
            return False
        return (yield from self.release())

    def _bring(
        self, piece: Piece, place: np.ndarray, yaw: float, within: np.ndarray, turn_within: float, **settings: Any
    ) -> Part:
        def pose() -> Pose:
            return self._pose(piece.name)

        target = Target(place, yaw)
        return (yield from self.carry(self._model(piece), pose, lambda: target, within, turn_within, **settings))

    def _seated(self, piece: Piece) -> bool:
        away = self._pose(piece.name).position - self._seat_position(piece)
        return bool(np.linalg.norm(away[:2]) < SEATED and away[2] < LOW and not self.scene.holds(self._model(piece)))

    def _seat_position(self, piece: Piece) -> np.ndarray:
        return self._pose(piece.under).position + np.array([0.0, 0.0, piece.seat])

    def _model(self, piece: Piece) -> Any:
        return getattr(self.scene.env, piece.name)

    def _pose(self, name: str) -> Pose:
        return self.scene.body(getattr(self.scene.env, name).root_body)
