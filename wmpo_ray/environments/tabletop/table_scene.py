"""The scene of a small tabletop task: one of robosuite's, with a hand that is told where to be and starts in the view."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from wmpo_ray.core.npz_files import load_npy
from wmpo_ray.environments.robosuite.simulator import SceneState, Simulator
from wmpo_ray.environments.tabletop.box import Box

TABLE_Z, LIFTED = 0.8, 0.04  # metres; robosuite counts a cube as lifted above TABLE_Z + LIFTED
CUBE_YAW = 0.3  # cubes start turned by at most that
STEPS = 2  # of the controller, 1/20 s each, for each action
TORQUE_EVERY = 2  # steps of the physics: the controller takes three quarters of the time
REACH, TURN = 0.05, 0.5  # metres and radians that 1 stands for in an action of the controller
GRIP_SPEED = 0.02  # twice robosuite's, so that the fingers close within three actions
OPEN = np.array([0.04, -0.04])  # metres, of the two fingers


class TableScene(ABC):
    """One simulator, with the scene that was placed or loaded last.

    A subclass names `task`, `box`, `cubes`, as robosuite's environment has them, and the file of `poses_file`.
    """

    task: ClassVar[str]
    box: ClassVar[Box]
    cubes: ClassVar[tuple[str, ...]]  # the first is the one that the hand has to take
    poses_file: ClassVar[Path]  # [64, 7] joint angles that the arm may start with, by `reachable_poses`

    def __init__(self, poses: np.ndarray | None = None):
        """`poses`: joint angles [n, 7] that the arm may start with; those of the package if not given."""
        self.simulator = Simulator(self.task)
        env, robot = self.simulator.env, self.simulator.robot
        quick = type("QuickGripper", (type(robot.gripper),), {"speed": GRIP_SPEED})
        robot.gripper.__class__ = quick
        self.model, self.data = self.simulator.model, self.simulator.data
        self.site = robot.eef_site_id
        self.arm = np.asarray(robot._ref_joint_pos_indexes)
        self.fingers = np.asarray(robot._ref_gripper_joint_pos_indexes)
        models = [getattr(env, name) for name in self.cubes]
        self._bodies = [env.sim.model.body_name2id(model.root_body) for model in models]
        self._joints = [int(env.sim.model.get_joint_qpos_addr(model.joints[0])[0]) for model in models]
        self.poses = load_npy(self.poses_file) if poses is None else poses
        self.simulator.place(0)
        self._set_arm(np.asarray(robot.init_qpos, np.float64))
        self.home = self.data.site_xmat[self.site].reshape(3, 3).copy()  # the hand points down
        self._base = self.simulator.state()

    @abstractmethod
    def draw_places(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        """(x, y, yaw) of every cube on the table, in metres from its middle and radians."""

    @abstractmethod
    def succeeded(self) -> bool:
        """Of the scene as it was refreshed."""

    def dropped(self) -> bool:
        """Whether a cube that the fingers held is lost: they do not hold it, and there is no success."""
        return not self.grasped() and not self.succeeded()

    # -- what happens --------------------------------------------------------------------------------------------

    def place(self, seed: int) -> None:
        """The scene of a seed: the cubes on the table, the hand above them somewhere in the view."""
        rng = np.random.default_rng(seed)
        places = self.draw_places(rng)
        pose = self.poses[rng.integers(len(self.poses))]
        self.simulator.load(self._base)
        for body, joint, (x, y, yaw) in zip(self._bodies, self._joints, places, strict=True):
            height = TABLE_Z + self.model.geom_size[self.model.body_geomadr[body], 2]
            self.data.qpos[joint : joint + 7] = [x, y, height, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        self._set_arm(pose)

    def move(self, action: np.ndarray) -> None:
        """Go towards an action [4] in [-1, 1] for a tenth of a second, with the hand pointing down."""
        action = np.clip(np.asarray(action, np.float64), -1, 1)
        target, grip = self.box.from_unit(action[:3]), 1.0 if action[3] > 0 else -1.0
        for _ in range(STEPS):
            delta = np.clip((target - self.hand) / REACH, -1, 1)
            turn = self.home @ self.data.site_xmat[self.site].reshape(3, 3).T
            self.simulator.step(np.concatenate([delta, np.clip(_axis_angle(turn) / TURN, -1, 1), [grip]]), TORQUE_EVERY)
            self.simulator.refresh()

    def state(self) -> SceneState:
        return self.simulator.state()

    def load(self, state: SceneState) -> None:
        self.simulator.load(state)
        self.simulator.refresh()
        # The warm start is part of the state, and computing what follows from it changes it.
        self.data.qacc_warmstart[:] = state["qacc_warmstart"]

    # -- what is seen of it --------------------------------------------------------------------------------------

    @property
    def hand(self) -> np.ndarray:
        """Where the fingers meet, [3] in metres."""
        return self.data.site_xpos[self.site].copy()

    @property
    def cube(self) -> np.ndarray:
        """The middle of the cube to take, [3] in metres."""
        return self.cube_positions[0]

    @property
    def cube_positions(self) -> np.ndarray:
        """[cubes, 3] in metres."""
        return self.data.xpos[self._bodies].copy()

    def lifted(self) -> bool:
        return bool(self.cube[2] > TABLE_Z + LIFTED)

    def grasped(self) -> bool:
        env = self.simulator.env
        cube: Any = getattr(env, self.cubes[0])
        return bool(env._check_grasp(gripper=env.robots[0].gripper, object_geoms=cube))

    def _set_arm(self, pose: np.ndarray) -> None:
        """Put the resting arm into joint angles [7]."""
        self.data.qpos[self.arm], self.data.qpos[self.fingers] = pose, OPEN
        self.data.qvel[:] = 0
        self.data.qacc_warmstart[:] = 0
        self.simulator.refresh()
        self.data.qacc_warmstart[:] = 0
        controller = self.simulator.robot.controller
        controller.update_initial_joints(pose)
        controller.update(force=True)
        controller.reset_goal()
        self.simulator.robot.gripper.current_action = np.sign(OPEN)

    # -- how its file of poses was made --------------------------------------------------------------------------

    @classmethod
    def reachable_poses(cls, above: float = 0.07, num: int = 64, seed: int = 0) -> np.ndarray:
        """Joint angles [num, 7] with the hand pointing down inside the box, at least `above` metres over its floor."""
        scene = cls(poses=np.zeros((1, 7)))
        scene.poses = np.asarray(scene.simulator.robot.init_qpos, np.float64)[None]
        rng, found = np.random.default_rng(seed), []
        scene.place(0)
        scene.data.qpos[scene._joints] += 1.0  # out of the way
        low, high = cls.box.low + np.array([0.02, 0.03, above]), cls.box.high - np.array([0.02, 0.03, 0.005])
        for _ in range(num):
            target = np.append(cls.box.to_unit(rng.uniform(low, high)), -1.0)
            for _ in range(12):
                scene.move(target)
            found.append(scene.data.qpos[scene.arm].copy())
        return np.array(found)


def _axis_angle(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrix [3, 3] -> axis times angle [3], for angles well below a half turn."""
    off = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    angle = np.arctan2(np.linalg.norm(off), np.trace(rotation) - 1)
    sine = np.sin(angle)
    return off / 2 * (angle / sine if sine > 1e-8 else 1.0)
