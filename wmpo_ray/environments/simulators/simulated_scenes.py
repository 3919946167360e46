"""What environments with a simulator share: scenes that end, and the picture of each, drawn when it is first looked at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from wmpo_ray.core.observations import Observation, StartState
from wmpo_ray.core.starts import seeded_starts


class SimulatedScenes(ABC):
    """N scenes, stepped one after the other, all with the same instruction.

    A subclass calls `_begin(N)` before it places scenes, and `_changed(i)` when scene i is no longer as it was drawn.
    """

    action_dim: int
    frame_shape: tuple[int, int, int]
    instructions: tuple[str, ...]
    terminated: np.ndarray  # [N] bool
    success: np.ndarray  # [N] bool
    failures: dict[str, np.ndarray]  # name -> [N] bool

    @abstractmethod
    def restore(self, starts: Sequence[StartState]) -> None:
        """One scene for each start."""

    @abstractmethod
    def advance(self, actions: np.ndarray) -> None:
        """Move every scene that has not ended by one step; actions [N, D] in [-1, 1]."""

    @abstractmethod
    def _draw(self, i: int) -> np.ndarray:
        """The frame of scene i as it is now, [H, W, 3] uint8."""

    def close(self) -> None:
        """Give back what simulator and pictures take."""
        self._begin(0)

    def check(self) -> None:
        """Place a scene, draw it and take a step. Raises ConfigError in one line for whatever is missing or wrong."""
        self.restore(seeded_starts([0]))
        self.render()
        self.advance(np.zeros((1, self.action_dim), np.float32))
        self.render()
        self.close()

    def observe(self) -> Observation:
        return Observation.of(self.render(), self.instructions * len(self.terminated))

    def render(self) -> np.ndarray:
        frames = [self._frame(i) for i in range(len(self.terminated))]
        return np.stack(frames) if frames else np.zeros((0, *self.frame_shape), np.uint8)

    def _begin(self, n: int) -> None:
        """N scenes of which nothing is known yet."""
        self.terminated, self.success = np.zeros((2, n), bool)
        self.failures = {}
        self._frames: list[np.ndarray | None] = [None] * n  # of each scene as it is, where it was drawn

    def _changed(self, i: int) -> None:
        self._frames[i] = None

    def _frame(self, i: int) -> np.ndarray:
        found = self._frames[i]
        if found is None:
            found = self._frames[i] = self._draw(i)
        return found
