"""The expert of MimicGen's Coffee: a pod is put into the machine, and the lid is closed."""

from __future__ import annotations

import numpy as np

from wmpo_ray.environments.robosuite.experts.expert import Part
from wmpo_ray.environments.robosuite.experts.moves import CLOSE, CLOSE_STEPS, Manipulation, Target
from wmpo_ray.environments.robosuite.experts.rotations import heading
from wmpo_ray.environments.robosuite.experts.scene import Pose
from wmpo_ray.environments.robosuite.experts.servo import PositionServo

POD, HOLDER, MACHINE = "coffee_pod_main", "coffee_machine_pod_holder_root", "coffee_machine_root"
LID_JOINT = "coffee_machine_lid_main_joint0"
GRASP_HEIGHT = 0.014  # m above the pod's middle
POD_HOVER = np.array([0.004, 0.004, 0.03])  # m: there is little room between pads and pod, and it falls over
LIFT = 0.24  # m
ALIGN_HEIGHT, DROP_HEIGHT = 0.065, 0.032  # m: the pod's middle above the holder's, before the way down and after it
COARSE_WITHIN = np.array([0.008, 0.008, 0.015])  # m
ALIGN_WITHIN, ALIGN_TURN = np.array([0.0025, 0.0025, 0.006]), 0.1  # m, rad
DOWN_WITHIN = np.array([np.inf, np.inf, 0.004])  # m
INSIDE, LOW = 0.015, 0.02  # m from the middle of the holder, in the plane and up, of a pod that the lid can press in
CLOSED = 0.2  # rad; the task asks for 15 degrees
HINGE = -0.046  # m along the machine's y, from the holder
OVER = 1.17  # m: a height at which the hand passes over the open lid
# Along the machine's y from the hinge, and the height, m: behind the lid, beyond it, down on it.
BEHIND, BEYOND, PRESSED = (-0.11, 1.075), (0.06, 1.085), (0.06, 1.03)


class CoffeeExpert(Manipulation):
    def attempt(self) -> Part:
        if not self._inserted():
            return self._insert()
        return self._close_lid() if self.scene.joint(LID_JOINT) > CLOSED else self.rest()

    def _insert(self) -> Part:
        pod, yaw = self.scene.env.coffee_pod, self._yaw()
        if not self.keeps(pod):

            def grasp() -> Target:
                return Target(self._pod().position + np.array([0.0, 0.0, GRASP_HEIGHT]), yaw)

            if not (yield from self.pick(pod, grasp, 0.08, 0.005, hover_within=POD_HOVER)):
                return False
            self.stage = "lift"
            yield from self.rise(self.scene.hand().position[2] + LIFT)
        turned = heading(self._pod().rotation)
        for stage, height, within, turn_within, steps in (
            ("carry", ALIGN_HEIGHT, COARSE_WITHIN, ALIGN_TURN, 80),
            ("align", ALIGN_HEIGHT, ALIGN_WITHIN, ALIGN_TURN, 60),
            ("lower", DROP_HEIGHT, DOWN_WITHIN, np.pi, 30),
        ):
            self.stage = stage
            if not (yield from self._bring(height, turned, within, turn_within, steps, 2 if stage == "align" else 1)):
                return False
        return (yield from self.release(retreat=0.10))

    def _bring(
        self, height: float, yaw: float, within: np.ndarray, turn_within: float, max_steps: int, settled: int
    ) -> Part:
        """Carry the pod over the holder, to a height above its middle."""
        target = Target(self.scene.body(HOLDER).position + np.array([0.0, 0.0, height]), yaw)
        pod, servo = self.scene.env.coffee_pod, PositionServo(gain=1.0, integral_rate=0.0)
        return (
            yield from self.carry(pod, self._pod, lambda: target, within, turn_within, max_steps, settled, servo=servo)
        )

    def _close_lid(self) -> Part:
        """From behind, with a closed hand."""
        yaw = self._yaw()
        self.stage = "over"
        if self._along() > BEHIND[0] / 2:
            yield from self.rise(OVER)
        yield from self._go(BEHIND[0], OVER, yaw, np.array([0.02, 0.02, 0.03]))
        self.stage = "behind"
        yield from self.stay(CLOSE_STEPS if self.grip != CLOSE else 0, CLOSE)
        yield from self._go(*BEHIND, yaw, np.array([0.015, 0.015, 0.01]))
        self.stage = "push"
        yield from self._go(*BEYOND, yaw, np.array([0.015, 0.015, 0.02]))
        self.stage = "press"
        return (yield from self._go(*PRESSED, yaw, np.array([0.02, 0.02, 0.008]), max_steps=20))

    def _go(self, along: float, height: float, yaw: float, within: np.ndarray, max_steps: int = 60) -> Part:
        """Bring the hand to a place behind or before the hinge."""
        x, y, _ = self.scene.body(HOLDER).position + (HINGE + along) * self._forward()
        target = Target(np.array([x, y, height]), yaw)
        return (yield from self.move_hand(lambda: target, within, max_steps=max_steps))

    def _along(self) -> float:
        """How far the hand is before the hinge, m."""
        return float((self.scene.hand().position - self.scene.body(HOLDER).position) @ self._forward()) - HINGE

    def _inserted(self) -> bool:
        away = self._pod().position - self.scene.body(HOLDER).position
        return bool(
            np.linalg.norm(away[:2]) < INSIDE and away[2] < LOW and not self.scene.holds(self.scene.env.coffee_pod)
        )

    def _yaw(self) -> float:
        """At which the fingers open along the hinge."""
        return self.nearest_yaw(heading(self.scene.body(MACHINE).rotation) - np.pi / 2, np.pi)

    def _forward(self) -> np.ndarray:
        return self.scene.body(MACHINE).rotation[:, 1]

    def _pod(self) -> Pose:
        return self.scene.body(POD)
