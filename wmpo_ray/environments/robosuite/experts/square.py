"""The expert of NutAssemblySquare and of MimicGen's Square: a square nut is put over a square peg."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

from wmpo_ray.environments.robosuite.experts.expert import Part
from wmpo_ray.environments.robosuite.experts.moves import YAW_LIMIT, Manipulation, Target
from wmpo_ray.environments.robosuite.experts.rotations import about_z, equivalents, heading
from wmpo_ray.environments.robosuite.experts.scene import Pose

QUARTER, HALF = np.pi / 2, np.pi
FALL_STEPS = 8  # that the nut needs to fall onto the table after a reset
OUTWARD, UPWARD = 0.008, 0.003  # m from the middle of the handle: clear of the peg, and of the table
GRASP_WITHIN, GRASP_TURN = np.array([0.005, 0.005, 0.003]), 0.06  # m, rad
REACH = 0.83  # m from the arm's base: beyond it the elbow is straight
LIFT = 0.15  # m above the table: the grip site's height at which the nut passes over the peg
ALIGN_HEIGHT, LOWER_HEIGHT = 0.165, 0.04  # m above the table: the nut's
ALIGN_WITHIN, ALIGN_TURN = np.array([0.004, 0.004, 0.01]), 0.03  # m, rad
ON_PEG, PEG_LOW = 0.03, 0.05  # m: how near the nut must be to the peg, and how low, as the task has it


class SquareExpert(Manipulation):
    def script(self) -> Generator[np.ndarray, None, None]:
        self.stage = "wait"
        yield from self.stay(FALL_STEPS if self.scene.env.sim.data.time < 0.01 else 0)
        yield from super().script()

    def attempt(self) -> Part:
        if not self._on_peg():
            return self._put()
        return self.release() if self.scene.holds(self._nut) else self.rest()

    def _put(self) -> Part:
        if not self.keeps(self._nut):
            yaw = self.nearest_yaw(heading(self._pose().rotation), HALF)

            def grasp() -> Target:
                return Target(self._handle(), yaw)

            if not (yield from self.pick(self._nut, grasp, 0.08, GRASP_WITHIN, GRASP_TURN)):
                return False
        self.stage = "lift"
        yield from self.rise(self._table + LIFT)
        target_yaw = self._square_yaw()
        self.stage = "carry"
        if not (yield from self._bring(ALIGN_HEIGHT, target_yaw, np.array([0.01, 0.01, 0.02]), 0.1)):
            return False
        self.stage = "align"
        for _ in range(2):  # with a step between, so that it is not just passing by
            if not (yield from self._bring(ALIGN_HEIGHT, target_yaw, ALIGN_WITHIN, ALIGN_TURN)):
                return False
            yield from self.stay(1)
        self.stage = "lower"
        yield from self._bring(LOWER_HEIGHT, target_yaw, np.array([np.inf, np.inf, 0.005]), np.pi)
        return (yield from self.release())

    def _bring(self, height: float, yaw: float, within: np.ndarray, turn_within: float) -> Part:
        """Carry the nut over the peg, to a height above the table."""
        x, y, _ = self.scene.body("peg1").position
        target = Target(np.array([x, y, self._table + height]), yaw)
        return (yield from self.carry(self._nut, self._pose, lambda: target, within, turn_within))

    def _square_yaw(self) -> float:
        """The nut's yaw with the least turn at which it fits the peg, and the hand is within reach above the peg."""
        peg, nut, hand = self.scene.body("peg1"), self._pose(), self.yaw()
        to_peg = peg.position - self.scene.env.robots[0].base_pos
        handle = self.scene.hand().position - nut.position

        def beyond(turn: float) -> float:
            return max(0.0, float(np.linalg.norm((to_peg + about_z(turn) @ handle)[:2])) - REACH)

        options = equivalents(hand + heading(peg.rotation) - heading(nut.rotation), QUARTER, YAW_LIMIT)
        return heading(nut.rotation) + min(
            (option - hand for option in options), key=lambda turn: (beyond(turn), abs(turn))
        )

    def _on_peg(self) -> bool:
        nut, peg = self._pose().position, self.scene.body("peg1").position
        return bool(np.abs(nut - peg)[:2].max() < ON_PEG and nut[2] < self._table + PEG_LOW)

    def _handle(self) -> np.ndarray:
        pose = self._pose()
        handle = self.scene.site(f"{self._nut.name}_handle_site").position
        outward = handle - pose.position
        return handle + OUTWARD * outward / np.linalg.norm(outward) + np.array([0.0, 0.0, UPWARD])

    def _pose(self) -> Pose:
        return self.scene.body(self._nut.root_body)

    @property
    def _nut(self) -> Any:
        return self.scene.env.nuts[0]

    @property
    def _table(self) -> float:
        return float(self.scene.env.table_offset[2])
