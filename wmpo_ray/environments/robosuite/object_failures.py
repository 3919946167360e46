"""What goes wrong while a robot handles objects, read from the simulator: closed on nothing, let go, on the wrong peg."""

from __future__ import annotations

from typing import Any

import numpy as np

from wmpo_ray.environments.robosuite.simulator import SceneState, Simulator

FAILURES = ("miss", "drop")
WRONG_PEG = "wrong_peg"
CLOSED_GAP = 0.005  # metres between the fingers that hold nothing; every object of robosuite is wider
RAISED = 0.02  # metres above its start that an object was held, to be dropped
FALLEN = 0.03  # metres below where it was held last


class ObjectFailures:
    """Failures of a task with objects to grasp; a task without, such as opening a door, has no named ones.

        miss: the fingers closed and there was nothing between them
        drop: an object that was raised was let go of and fell, before the task was done
        wrong_peg: a nut is on the peg of another shape

    What has to be remembered of a scene is two numbers for each object, which are saved with it.
    """

    def __init__(self, simulator: Simulator):
        self.simulator, env = simulator, simulator.env
        free = simulator.mujoco.mjtJoint.mjJNT_FREE
        self._objects = [
            item
            for item in env.model.mujoco_objects
            if item.joints and simulator.model.joint(item.joints[0]).type[0] == free
        ]
        self._bodies = [simulator.model.body(item.root_body).id for item in self._objects]
        self._pegs = getattr(env, "on_peg", None)
        pegs = (WRONG_PEG,) if self._pegs else ()
        self.names: tuple[str, ...] = (*FAILURES, *pegs) if self._objects else ()

    def begin(self) -> SceneState:
        """What is remembered of a scene that was just placed and refreshed; a height that is not known is -inf."""
        return {"start_height": self._heights(), "held_height": np.full(len(self._objects), -np.inf)}

    def note(self, memory: SceneState, succeeded: bool) -> dict[str, bool]:
        """Update the memory of the scene as it was refreshed, in place; name -> whether it goes wrong now."""
        if not self.names:
            return {}
        held, heights = np.array([self._is_held(item) for item in self._objects]), self._heights()
        raised = held & (heights > memory["start_height"] + RAISED)
        memory["held_height"][raised] = heights[raised]
        fallen = ~held & (heights < memory["held_height"] - FALLEN)
        memory["held_height"][fallen] = -np.inf  # a drop is noted once
        found = {
            "miss": self._finger_gap() < CLOSED_GAP and not held.any(),
            "drop": bool(fallen.any()) and not succeeded,
        }
        return found | ({WRONG_PEG: self._on_wrong_peg()} if self._pegs else {})

    def _heights(self) -> np.ndarray:
        return np.array(self.simulator.data.xpos[self._bodies, 2])

    def _is_held(self, item: Any) -> bool:
        return bool(self.simulator.env._check_grasp(self.simulator.robot.gripper, item))

    def _finger_gap(self) -> float:
        left, right = self.simulator.data.qpos[self.simulator.robot._ref_gripper_joint_pos_indexes]
        return float(left - right)

    def _on_wrong_peg(self) -> bool:
        assert self._pegs is not None
        return any(self._pegs(self.simulator.data.xpos[body], 1 - i) for i, body in enumerate(self._bodies))
