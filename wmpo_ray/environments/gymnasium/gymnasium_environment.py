"""Scenes of an environment that is registered with gymnasium, stepped one after the other."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import gymnasium
import numpy as np
from PIL import Image

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError, first_line
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.section import shown
from wmpo_ray.environments.finite_actions import check_finite
from wmpo_ray.environments.gymnasium.gymnasium_settings import RENDER, GymnasiumConfig
from wmpo_ray.environments.simulators.simulated_scenes import SimulatedScenes

FAILURES = ("ended",)


class GymnasiumEnvironment(SimulatedScenes):
    """N simulators, one for each scene (implements `wmpo_ray.core.interfaces.Environment`).

    Actions in [-1, 1] are scaled to the bounds of the action space. An episode ends at the first success, and where the
    simulator terminates or truncates it; what ends without success has the failure "ended". A scene is rebuilt by
    seeding the simulator, so that it is the same scene as far as the simulator keeps to its seed.
    """

    abilities: frozenset[str] = frozenset({"render"})
    extra: ClassVar[str] = ""  # of this package, that installs the simulator

    def __init__(self, config: GymnasiumConfig):
        self.config = config
        self.horizon = config.horizon
        self.action_dim = config.action_dim
        self.frame_shape = (config.image_size, config.image_size, 3)
        self.instructions = (config.instruction,)
        self._simulators: list[gymnasium.Env] = []  # kept from one episode to the next
        self._seen: list[Any] = []  # the last observation of each scene
        self._begin(0)

    @classmethod
    def from_config(cls, config: EnvironmentConfig) -> GymnasiumEnvironment:
        return cls(cast(GymnasiumConfig, config))

    def close(self) -> None:
        """Give the simulators back; `restore` makes new ones."""
        for simulator in self._simulators:
            simulator.close()
        self._simulators.clear()
        super().close()

    # -- episodes ------------------------------------------------------------------------------------------------

    def restore(self, starts: Sequence[StartState]) -> None:
        """One scene for each start, that of its seed. Raises ValueError for any other start, ConfigError as `check`."""
        for i, start in enumerate(starts):
            if start.seed is None or start.saved_state is not None:
                what = "has no seed" if start.seed is None else "has a saved_state"
                raise ValueError(
                    f"start {i} {what}, and environments of kind {shown(self.extra or self.config.kind)} are rebuilt from "
                    'seeds alone; start from recorded episodes or set world_model.kind = "diffusion"'
                )
        self._begin(len(starts))
        while len(self._simulators) < len(starts):
            self._simulators.append(self._make())
        for i, start in enumerate(starts):
            self._seen[i], _ = self._simulators[i].reset(seed=start.seed)
            self._placed(i)

    def _begin(self, n: int) -> None:
        super()._begin(n)
        self._seen = [None] * n
        self.failures = {name: np.zeros(n, bool) for name in FAILURES}

    def advance(self, actions: np.ndarray) -> None:
        """Move every scene that has not ended by `action_repeat` steps; actions [N, D] in [-1, 1] are clipped.

        Raises ValueError for numbers that are not finite.
        """
        check_finite(actions)
        for i in np.flatnonzero(~self.terminated):
            action = self._scaled(actions[i], cast(gymnasium.spaces.Box, self._simulators[i].action_space))
            for _ in range(self.config.action_repeat):
                self._seen[i], _, terminated, truncated, info = self._simulators[i].step(action)
                self.success[i] = self._succeeded(terminated, info)
                self.terminated[i] = self.success[i] or terminated or truncated
                self._note_failures(int(i), info)
                if self.terminated[i]:
                    break
            self._changed(int(i))

    def _scaled(self, action: np.ndarray, space: gymnasium.spaces.Box) -> np.ndarray:
        share = (np.clip(action.astype(np.float64), -1.0, 1.0).reshape(space.shape) + 1) / 2
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        return (low + share * (high - low)).astype(space.dtype)

    def _succeeded(self, terminated: bool, info: dict[str, Any]) -> bool:
        key = self.config.success_key
        if not key:
            return bool(terminated)
        if key not in info:
            raise ConfigError(
                f"environment.success_key={shown(key)} is not in the info of {self.config.id}, which has "
                f'{sorted(info)}; set environment.success_key to one of them, or to "" where an end is a success'
            )
        return bool(info[key])

    def _placed(self, i: int) -> None:
        """Scene i has just been placed."""

    def _note_failures(self, i: int, info: dict[str, Any]) -> None:
        """Scene i has just been stepped."""
        self.failures["ended"][i] = self.terminated[i] and not self.success[i]

    # -- views ---------------------------------------------------------------------------------------------------

    def _draw(self, i: int) -> np.ndarray:
        image, size = self._picture(i), (self.config.image_size,) * 2
        if image.shape[:2] != size:
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        return image

    def _picture(self, i: int) -> np.ndarray:
        """Scene i as the simulator shows it, [H, W, 3] uint8."""
        key, seen = self.config.image_key, self._seen[i]
        if key == RENDER:
            image: Any = self._simulators[i].render()
        elif key and not (isinstance(seen, dict) and key in seen):
            known = sorted(seen) if isinstance(seen, dict) else f"no entries but {_described(seen)}"
            raise ConfigError(
                f"environment.image_key={shown(key)} is not in the observation of {self.config.id}, which has {known}; set "
                f'environment.image_key to one of them, or to "{RENDER}"'
            )
        else:
            image = seen[key] if key else seen
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
            raise ConfigError(
                f"environment.image_key={shown(key)} of {self.config.id} is {_described(image)}, and a frame is [H, W, 3] "
                f'uint8; set environment.image_key to the entry that is one, or to "{RENDER}"'
            )
        return image

    # -- simulators ----------------------------------------------------------------------------------------------

    def _make(self) -> gymnasium.Env:
        """A simulator, checked. Raises ConfigError."""
        config = self.config
        self._import()
        arguments: dict[str, Any] = dict(config.make_arguments)
        if config.image_key == RENDER:
            arguments.setdefault("render_mode", "rgb_array")
        # The horizon ends an episode, so the limit that the id was registered with must not.
        limit = config.horizon * config.action_repeat + 1
        try:
            made = gymnasium.make(config.id, max_episode_steps=limit, disable_env_checker=True, **arguments)
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            raise ConfigError(
                f"environment.id={shown(config.id)} cannot be made ({first_line(error)}); change environment.id, "
                "environment.import_name or environment.make_arguments, or install what is missing"
            ) from None
        self._check_actions(made.action_space)
        return made

    def _import(self) -> None:
        name = self.config.import_name
        if not name:
            return
        try:
            importlib.import_module(name)
        except (ImportError, ValueError) as error:
            install = f"pip install 'wmpo-ray[{self.extra}]'" if self.extra else "install its package"
            key = f"environment.kind={shown(self.extra)}" if self.extra else f"environment.import_name={shown(name)}"
            change = "environment.kind" if self.extra else "environment.import_name"
            raise ConfigError(
                f"{key} needs the module {name}, which cannot be imported ({first_line(error)}); {install} or change {change}"
            ) from None

    def _check_actions(self, space: gymnasium.Space) -> None:
        config = self.config
        if not isinstance(space, gymnasium.spaces.Box):
            raise ConfigError(
                f"environment.id={shown(config.id)}: its actions are {type(space).__name__}, and only a Box of numbers is "
                "supported; change environment.id or environment.make_arguments"
            )
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ConfigError(
                f"environment.id={shown(config.id)}: its actions are unbounded ({space}), and [-1, 1] is scaled to their "
                "bounds; change environment.id, or register it with gymnasium's wrapper RescaleAction"
            )
        size = int(np.prod(space.shape))
        if size != config.action_dim:
            raise ConfigError(
                f"environment.action_dim={config.action_dim}, and actions of {config.id} have {size} numbers; set "
                f"environment.action_dim={size}"
            )


def _described(value: object) -> str:
    """What an observation is, in an error."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a dict of {sorted(value)}" if isinstance(value, dict) else type(value).__name__
