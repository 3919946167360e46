"""A small environment of gymnasium: a dot that has to reach the middle. Importing this registers `tests/Reach-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

LOW, HIGH = np.array([-1.0, -3.0], np.float32), np.array([2.0, 1.0], np.float32)
SIZE = 12
REACH: dict[str, Any] = {
    "id": "tests/Reach-v0",
    "import_name": "tests.support.reach_gym",
    "action_dim": 2,
    "image_size": 6,
    "instruction": "reach the middle",
}


class ReachEnv(gymnasium.Env):
    """Observation [12, 24, 3] uint8; an action (dx, dy) within LOW and HIGH moves the dot on a board of 12 by 12.

    `flaw` makes it one that cannot be used: "discrete", "unbounded", "float", "dict" (which needs an image key), "secret"
    (no success in info), "blind" (no pictures) or "fails".
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  gymnasium declares it so

    def __init__(self, flaw: str = "", render_mode: str | None = None, terminates: bool = True):
        if flaw == "fails":
            raise ValueError("the motor is cold\nand so on")
        self.flaw, self.render_mode, self.terminates = flaw, render_mode, terminates
        low = LOW if flaw != "unbounded" else np.full(2, -np.inf, np.float32)
        self.action_space = gymnasium.spaces.Box(low, HIGH, dtype=np.float32)
        if flaw == "discrete":
            self.action_space = gymnasium.spaces.Discrete(4)
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, 2 * SIZE, 3), np.uint8)
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.place, self.num_steps = self.np_random.uniform(1, 4, 2), 0
        self.actions.clear()
        return self._observation(), {}

    def step(self, action):
        self.actions.append(action)
        self.num_steps += 1
        self.place = np.clip(self.place + action, 0, SIZE - 1)
        success = bool(np.abs(self.place - SIZE / 2).max() < 2)
        outside = bool(self.place[0] == 0)
        info = {"is_success": success} if self.flaw != "secret" else {"solved": success}
        return self._observation(), 0.0, (success and self.terminates) or outside, False, info

    def render(self):
        shows = self.render_mode == "rgb_array" and self.flaw != "blind"
        return self._image()[:, ::-1].copy() if shows else None

    def _observation(self) -> Any:
        if self.flaw == "dict":
            return {"camera": self._image(), "place": self.place}
        return self._image().astype(np.float32) if self.flaw == "float" else self._image()

    def _image(self) -> np.ndarray:
        image = np.zeros((SIZE, 2 * SIZE, 3), np.uint8)
        x, y = self.place.astype(int)
        image[y, 2 * x : 2 * x + 2] = 200
        return image


if REACH["id"] not in gymnasium.registry:
    gymnasium.register(REACH["id"], entry_point=ReachEnv, max_episode_steps=3)
