"""A task of robosuite without its observations: places scenes by seeds, steps them, takes their whole state out and in.

One simulator serves any number of scenes, one after the other: a scene is a few hundred numbers, from which everything
else is computed anew. So nothing can be left over from another scene, and what is saved is what is stepped.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown
from wmpo_ray.environments.robosuite.installed import load_robosuite
from wmpo_ray.environments.robosuite.robosuite_settings import ACTION_DIM
from wmpo_ray.environments.simulators.mujoco_module import load_mujoco

ROBOT, CONTROLLER, CONTROL_HZ = "Panda", "OSC_POSE", 20
MODEL_SEED = 0  # sizes of objects are drawn when the model is built: all processes build the same one

SceneState = dict[str, np.ndarray]  # name -> float64 array; see `Simulator.state`


class Simulator:
    """One raw environment of robosuite, `env`, with the scene that was placed or loaded last.

    The model is built once, so that ids and geometry are those of every scene. Raises ConfigError for a task that
    robosuite does not know, or that is not one for a single arm with a gripper.
    """

    def __init__(self, task: str):
        robosuite = load_robosuite()
        self.mujoco = load_mujoco()
        self.env = _make(robosuite, task)
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data
        self.robot = self.env.robots[0]
        self.num_substeps = int(self.env.control_timestep / self.env.model_timestep)
        # Where tasks and disruptions move bodies that have no joints: a door, a peg.
        self.body_pos, self.body_quat = self.model.body_pos.copy(), self.model.body_quat.copy()

    def place(self, seed: int) -> None:
        """The scene that robosuite draws from its random numbers, numpy's and Python's global ones, seeded."""
        self.model.body_pos[:], self.model.body_quat[:] = self.body_pos, self.body_quat
        with _seeded(seed):
            self.env.reset()
        gripper = self.robot.gripper  # robosuite begins with one number for all fingers and goes on with one for each
        gripper.current_action = np.zeros(len(gripper.actuators)) + gripper.current_action

    def step(self, action: np.ndarray, torque_every: int = 1) -> None:
        """One action [7] of 1/20 s: what `env.step` does, with a torque for every substep, without computing it thrice.

        `env.step` computes the accelerations twice before the torque is known, and once more with it.
        """
        mujoco, sim = self.mujoco, self.env.sim
        sim.forward = _nothing  # the controller calls it before it reads what the first half of a substep has computed
        try:
            for substep in range(self.num_substeps):
                mujoco.mj_step1(self.model, self.data)
                if substep % torque_every == 0:
                    self.env._pre_action(action, substep == 0)
                mujoco.mj_step2(self.model, self.data)
        finally:
            del sim.forward

    def refresh(self) -> None:
        """Compute what follows from the state, such as contacts. It is needed after `load` before anybody looks."""
        self.mujoco.mj_forward(self.model, self.data)

    def succeeded(self) -> bool:
        """Of the scene as it was refreshed."""
        return bool(self.env._check_success())

    # -- the whole state -----------------------------------------------------------------------------------------

    def state(self) -> SceneState:
        """Copies of all that the next step depends on; `refresh` must not come before, it changes the warm start."""
        controller = self.robot.controller
        parts = {
            "time": [self.data.time],
            **self._arrays(),
            # The controller keeps its goal where an action has no rotation, and pulls the joints to their first pose.
            "goal_ori": controller.goal_ori,
            "goal_pos": controller.goal_pos,
            "initial_joint": controller.initial_joint,
            "grip": self.robot.gripper.current_action,
        }
        return {name: np.array(values, np.float64) for name, values in parts.items()}

    def load(self, state: SceneState) -> None:
        """Go on from a state; nothing that follows from it is computed yet."""
        self.data.time = float(state["time"][0])
        for name, values in self._arrays().items():
            values[...] = state[name]
        controller = self.robot.controller
        for name in ("goal_ori", "goal_pos", "initial_joint"):
            setattr(controller, name, state[name].copy())
        controller.new_update = True  # what it has read is of another scene
        self.robot.gripper.current_action = state["grip"].copy()

    def _arrays(self) -> dict[str, np.ndarray]:
        """The simulator's own memory, and what of the model belongs to a scene."""
        names = ("qpos", "qvel", "act", "qacc_warmstart", "ctrl")
        model = {"body_pos": self.model.body_pos, "body_quat": self.model.body_quat}
        return {**{name: getattr(self.data, name) for name in names}, **model}


def _nothing() -> None:
    pass


def _make(robosuite: Any, task: str) -> Any:
    from robosuite.controllers import load_controller_config
    from robosuite.environments.base import REGISTERED_ENVS
    from robosuite.environments.manipulation.single_arm_env import SingleArmEnv

    usable = sorted(name for name, made in REGISTERED_ENVS.items() if issubclass(made, SingleArmEnv))
    if task not in usable:
        kind = "a task for two arms" if task in REGISTERED_ENVS else "unknown"
        raise ConfigError(
            f"environment.task={shown(task)}: it is {kind}; the tasks of robosuite {robosuite.__version__} for one arm are "
            f"{', '.join(usable)}"
        )
    with _seeded(MODEL_SEED):
        env = robosuite.make(
            task,
            robots=ROBOT,
            controller_configs=load_controller_config(default_controller=CONTROLLER),
            control_freq=CONTROL_HZ,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=False,
            ignore_done=True,
            hard_reset=False,
            reward_shaping=False,
        )
    if env.action_dim != ACTION_DIM:
        raise ConfigError(
            f"environment.task={shown(task)}: its actions have {env.action_dim} numbers, and only tasks with a gripper are "
            f"supported, which have {ACTION_DIM}; change environment.task"
        )
    return env


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random numbers that robosuite draws from, and leave them afterwards as they were."""
    before, before_python = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        # robosuite chooses from sets of names, whose order is another one in every process.
        with mock.patch.object(random, "choice", lambda options, choose=random.choice: choose(sorted(options))):
            yield
    finally:
        np.random.set_state(before)
        random.setstate(before_python)
