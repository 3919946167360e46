"""The pocket task as a gymnasium environment, one scene at a time.

Importing this module registers `wmpo_ray/Pocket-v0`; without an import of one's own,
`gymnasium.make("wmpo_ray.environments.pocket.gym:wmpo_ray/Pocket-v0")` does both.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from wmpo_ray.environments.pocket.env import Disruption, PocketEnvironment
from wmpo_ray.environments.pocket.rendering import upscale

ENVIRONMENT_ID = "wmpo_ray/Pocket-v0"


class PocketGymEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observation [16, 16, 3] uint8, action [3] float32 in [-1, 1] (see `PocketEnvironment`).

    The reward is 1 at the step that succeeds and 0 otherwise; success terminates, the horizon truncates. `info` holds
    the instruction, the scene's seed, the success and the failures seen so far. Raises ValueError for an unknown
    disruption or render mode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 gymnasium declares it so

    def __init__(self, horizon: int = 32, disruption: Disruption = "none", render_mode: str | None = None):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode={render_mode!r}: known are {self.metadata['render_modes']} and None")
        self.environment = PocketEnvironment(horizon, disruption)
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, PocketEnvironment.frame_shape, np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (PocketEnvironment.action_dim,), np.float32)
        self._scene_seed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Place scene `seed` of `PocketEnvironment`; without a seed, a new scene drawn from `np_random`."""
        super().reset(seed=seed)
        self._scene_seed = int(self.np_random.integers(2**62)) if seed is None else seed
        self.environment.reset([self._scene_seed], render=False)
        return self._observation(), self._info()

    def step(self, action: np.ndarray):
        ended = self.environment.terminated[0]
        _, terminated = self.environment.step(np.asarray(action)[None], render=False)
        success = bool(terminated[0])
        truncated = not success and int(self.environment.num_steps[0]) >= self.environment.horizon
        return self._observation(), float(success and not ended), success, truncated, self._info()

    def render(self) -> Any:
        """The frame enlarged for people, [256, 256, 3] uint8, with render mode `rgb_array`; None without one."""
        return upscale(self._observation()) if self.render_mode == "rgb_array" else None

    def _observation(self) -> np.ndarray:
        return self.environment.render()[0]

    def _info(self) -> dict[str, Any]:
        return {
            "instruction": self.environment.instruction[0],
            "scene_seed": self._scene_seed,
            "success": bool(self.environment.success[0]),
            "failures": [name for name, seen in self.environment.failures.items() if seen[0]],
        }


gymnasium.register(ENVIRONMENT_ID, entry_point=f"{__name__}:{PocketGymEnv.__name__}")
