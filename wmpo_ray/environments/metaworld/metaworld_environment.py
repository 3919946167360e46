"""Meta-World: a Sawyer arm above a table, with one of fifty tasks. The simulator is the package metaworld's."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, ClassVar

import gymnasium
import numpy as np

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.section import shown
from wmpo_ray.environments.gymnasium.gymnasium_environment import GymnasiumEnvironment
from wmpo_ray.environments.gymnasium.gymnasium_settings import RENDER, GymnasiumConfig
from wmpo_ray.environments.metaworld.metaworld_scenes import MetaWorldSimulator, SceneEnv, to_json
from wmpo_ray.environments.metaworld.metaworld_settings import ACTION_DIM, MetaWorldConfig
from wmpo_ray.environments.metaworld.metaworld_tasks import FAILURES, TASKS
from wmpo_ray.environments.metaworld.offscreen import choose_backend, picture_size

MODULE = "metaworld"
MOVED, NEAR = 0.005, 0.1  # metres that an object has moved that was moved, and that the fingers are near their goal
LIFTED, PUT_BACK = 0.05, 0.01  # metres above where it was: a carried object, and one that lies again


class MetaWorldEnvironment(GymnasiumEnvironment):
    """N scenes of a task (implements `wmpo_ray.core.interfaces.AbleEnvironment`).

    Actions are x, y and z of the hand, a centimetre a step at most, and the effort that closes the gripper. Success is
    Meta-World's own, after any step of the simulator. Failures, as far as the task can have them:
        never_near: the fingers never came within 10 cm of their goal
        never_moved: the object is where it was at the start
        dropped: the object was lifted by 5 cm and then lay as low as before, which was no success
    """

    abilities: frozenset[str] = frozenset({"expert", "restore", "render"})
    extra: ClassVar[str] = "metaworld"

    def __init__(self, config: MetaWorldConfig):
        self.section = config
        self.task = TASKS[config.task]
        self._shared: MetaWorldSimulator | None = None  # that all scenes are in
        shared = config.model_dump(include={"horizon", "image_size", "action_repeat"})
        super().__init__(
            GymnasiumConfig(
                id=config.task,
                import_name=MODULE,
                action_dim=ACTION_DIM,
                image_key=RENDER,
                success_key="success",
                instruction=self.task.instruction,
                **shared,
            )
        )

    @classmethod
    def from_config(cls, config: EnvironmentConfig) -> MetaWorldEnvironment:
        assert isinstance(config, MetaWorldConfig)
        return cls(config)

    # -- simulators ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        super().close()
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def _import(self) -> None:
        choose_backend()
        super()._import()

    def _make(self) -> gymnasium.Env:
        return SceneEnv(self._simulator())

    def _simulator(self) -> MetaWorldSimulator:
        if self._shared is None:
            self._import()
            own = self.section
            self._shared = MetaWorldSimulator(own.task, own.camera, picture_size(own.image_size), own.disruption)
        return self._shared

    def _env(self, i: int) -> SceneEnv:
        env = self._simulators[i]
        assert isinstance(env, SceneEnv)
        return env

    # -- episodes ------------------------------------------------------------------------------------------------

    def _begin(self, n: int) -> None:
        super()._begin(n)
        self.failures = {name: np.full(n, name != "dropped") for name in FAILURES[self.task.manner]}
        self._first_place = np.zeros((n, 3))  # of the object
        self._lifted = np.zeros(n, bool)

    def _placed(self, i: int) -> None:
        self._first_place[i] = self._env(i).scene.object

    def _note_failures(self, i: int, info: dict[str, Any]) -> None:
        scene, failures = self._env(i).scene, self.failures
        if "never_near" in failures:
            failures["never_near"][i] &= float(info["obj_to_target"]) > NEAR  # of the fingers, where nothing is moved
            return
        moved = np.linalg.norm(scene.object - self._first_place[i]) > MOVED
        failures["never_moved"][i] &= not (moved or self.success[i])
        if "dropped" in failures:
            height = scene.object[2] - self._first_place[i, 2]
            self._lifted[i] |= height > LIFTED
            failures["dropped"][i] |= self._lifted[i] and height < PUT_BACK and not self.success[i]

    # -- saved scenes --------------------------------------------------------------------------------------------

    def restore(self, starts: Sequence[StartState]) -> None:
        """One scene for each start: as `save` left it, else that of its seed.

        Raises ValueError for a start with neither, or with a state that is none of this task and these versions, and
        ConfigError where there is no simulator.
        """
        for i, start in enumerate(starts):
            if start.seed is None and start.saved_state is None:
                raise ValueError(
                    f"start {i} has no scene (seed and saved_state are None), so that it cannot be rebuilt; start from "
                    'recorded episodes or set world_model.kind = "diffusion"'
                )
        super().restore([replace(start, seed=start.seed or 0, saved_state=None) for start in starts])
        for i, start in enumerate(starts):
            if start.saved_state is not None:
                self._load(i, start.saved_state)

    def save(self) -> list[bytes]:
        """Each scene as it is now, for `StartState.saved_state`: JSON, the same bytes for the same scene."""
        return [json.dumps(self._saved(i), sort_keys=True).encode() for i in range(len(self.terminated))]

    def _saved(self, i: int) -> dict[str, Any]:
        return {
            **self._origin(),
            "scene": to_json(self._env(i).scene),
            "first_place": self._first_place[i].tolist(),
            "flags": {name: bool(flags[i]) for name, flags in self._flags().items()},
        }

    def _flags(self) -> dict[str, np.ndarray]:
        own = {"terminated": self.terminated, "success": self.success, "lifted": self._lifted}
        return own | {f"failures.{name}": flags for name, flags in self.failures.items()}

    def _origin(self) -> dict[str, str]:
        """What a saved scene depends on."""
        return {"task": self.section.task, **{name: version(name) for name in (MODULE, "mujoco")}}

    def _load(self, i: int, saved_state: bytes) -> None:
        try:
            saved = json.loads(saved_state)
            found = {name: saved.get(name) for name in self._origin()}
            if found != self._origin():
                raise ValueError(f"it is of {found}, and this is {self._origin()}")
            scene = self._simulator().restore(saved["scene"], self._env(i).scene)
            first_place = np.array(saved["first_place"], np.float64).reshape(3)
            flags = {name: bool(saved["flags"][name]) for name in self._flags()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"start {i}: its saved_state has {len(saved_state)} bytes and cannot be restored ({error}); start from "
                f"states that this kind saved with the same versions and environment.task={shown(self.section.task)}"
            ) from None
        self._env(i).scene, self._seen[i], self._frames[i] = scene, scene.seen, None
        self._first_place[i] = first_place
        for name, values in self._flags().items():
            values[i] = flags[name]

    # -- views ---------------------------------------------------------------------------------------------------

    def _picture(self, i: int) -> np.ndarray:
        try:
            return self._env(i).render()
        except (ImportError, RuntimeError, AttributeError) as error:  # what a missing or broken OpenGL comes as
            raise ConfigError(
                f'environment.kind="metaworld" cannot draw without a screen ({_one_line(error)}); install libegl1, '
                "libegl-mesa0 and libgl1-mesa-dri, or libosmesa6, or set MUJOCO_GL to egl, osmesa or glfw"
            ) from None

    # -- the expert ----------------------------------------------------------------------------------------------

    def expert_action(self, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
        """Actions [N, 4] of Meta-World's scripted policy; `noise` is the deviation of what is added to x, y and z, of 1."""
        scenes = [self._env(i).scene for i in range(len(self.terminated))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its actions will be clipped
            actions = np.array([self._simulator().script.get_action(scene.seen) for scene in scenes])
        actions = actions.reshape(-1, ACTION_DIM).astype(np.float64)
        actions[:, :3] = np.clip(actions[:, :3], -1, 1) + rng.normal(0, 1, (len(actions), 3)) * noise
        return np.clip(actions, -1, 1).astype(np.float32)


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
