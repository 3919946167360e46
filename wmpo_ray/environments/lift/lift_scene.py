"""The scene of the small Lift: robosuite's Lift with a hand that is told where to be, and starts within the view."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wmpo_ray.core.npz_files import load_npy
from wmpo_ray.environments.lift.lift_settings import BOX
from wmpo_ray.environments.robosuite.simulator import SceneState, Simulator

TABLE_Z, LIFTED = 0.8, 0.04  # metres; the cube counts as lifted above TABLE_Z + LIFTED, as robosuite has it
CUBE_RANGE, CUBE_YAW = 0.08, 0.3  # the cube starts within that of the middle, turned by at most that
STEPS = 2  # of the controller, 1/20 s each, for each action
TORQUE_EVERY = 2  # steps of the physics: the controller takes three quarters of the time
REACH, TURN = 0.05, 0.5  # metres and radians that 1 stands for in an action of the controller
GRIP_SPEED = 0.02  # twice robosuite's, so that the fingers close within three actions
OPEN = np.array([0.04, -0.04])  # metres, of the two fingers
ARM_POSES = "arm_poses.npy"  # [64, 7] joint angles, by `reachable_poses`


def to_unit(points: np.ndarray) -> np.ndarray:
    """Points [..., 3] in metres -> [..., 3] in [-1, 1] inside the box."""
    return (points - BOX[:, 0]) / (BOX[:, 1] - BOX[:, 0]) * 2 - 1


def from_unit(points: np.ndarray) -> np.ndarray:
    return BOX[:, 0] + (points + 1) / 2 * (BOX[:, 1] - BOX[:, 0])


class LiftScene:
    """One simulator, with the scene that was placed or loaded last."""

    def __init__(self, poses: np.ndarray | None = None):
        """`poses`: joint angles [n, 7] that the arm may start with; those of the package if not given."""
        self.simulator = Simulator("Lift")
        env, robot = self.simulator.env, self.simulator.robot
        quick = type("QuickGripper", (type(robot.gripper),), {"speed": GRIP_SPEED})
        robot.gripper.__class__ = quick
        self.model, self.data = self.simulator.model, self.simulator.data
        self.cube_body = env.sim.model.body_name2id(env.cube.root_body)
        self.site = robot.eef_site_id
        self.arm = np.asarray(robot._ref_joint_pos_indexes)
        self.fingers = np.asarray(robot._ref_gripper_joint_pos_indexes)
        self.cube = int(env.sim.model.get_joint_qpos_addr(env.cube.joints[0])[0])
        self.poses = load_npy(Path(__file__).with_name(ARM_POSES)) if poses is None else poses
        self.simulator.place(0)
        self._set_arm(np.asarray(robot.init_qpos, np.float64))
        self.home = self.data.site_xmat[self.site].reshape(3, 3).copy()  # the hand points down
        self._base = self.simulator.state()

    # -- what happens --------------------------------------------------------------------------------------------

    def place(self, seed: int) -> None:
        """The scene of a seed: the cube near the middle, the hand above it somewhere in the view."""
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(-CUBE_RANGE, CUBE_RANGE, 2)
        yaw = rng.uniform(-CUBE_YAW, CUBE_YAW)
        pose = self.poses[rng.integers(len(self.poses))]
        self.simulator.load(self._base)
        height = TABLE_Z + self.model.geom_size[self.model.body_geomadr[self.cube_body], 2]
        self.data.qpos[self.cube : self.cube + 7] = [x, y, height, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        self._set_arm(pose)

    def move(self, action: np.ndarray) -> None:
        """Go towards an action [4] in [-1, 1] for a tenth of a second, with the hand pointing down."""
        action = np.clip(np.asarray(action, np.float64), -1, 1)
        target, grip = from_unit(action[:3]), 1.0 if action[3] > 0 else -1.0
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
    def cube_position(self) -> np.ndarray:
        return self.data.xpos[self.cube_body].copy()

    def lifted(self) -> bool:
        return bool(self.cube_position[2] > TABLE_Z + LIFTED)

    def grasped(self) -> bool:
        env = self.simulator.env
        return bool(env._check_grasp(gripper=env.robots[0].gripper, object_geoms=env.cube))

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


def reachable_poses(num: int = 64, seed: int = 0) -> np.ndarray:
    """Joint angles [num, 7] with the hand pointing down inside the box: how ARM_POSES was made."""
    scene = LiftScene(poses=np.zeros((1, 7)))
    scene.poses = np.asarray(scene.simulator.robot.init_qpos, np.float64)[None]
    rng, found = np.random.default_rng(seed), []
    scene.place(0)
    scene.data.qpos[scene.cube] += 1.0  # out of the way
    low, high = BOX[:, 0] + [0.02, 0.03, 0.07], BOX[:, 1] - [0.02, 0.03, 0.005]
    for _ in range(num):
        target = np.append(to_unit(rng.uniform(low, high)), -1.0)
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
