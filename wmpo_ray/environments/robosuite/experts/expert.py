"""What an expert is: a script that sees the scene of one robosuite environment and gives the next action."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any

import numpy as np

from wmpo_ray.environments.robosuite.experts.scene import Scene

# A part of a script gives actions [7], is resumed with the scene that follows, and returns whether it got where it meant to.
Part = Generator[np.ndarray, None, bool]


class Expert(ABC):
    """Acts for one scene: OSC_POSE at 20 Hz, actions of 5 cm, 0.5 rad and the gripper (-1 opens, +1 closes).

    It is deterministic and reads the simulator when it is asked to act; it changes nothing. Noise is for the caller to
    add: every action goes by the scene as it is, and what was lost is picked up again.
    """

    stage = "start"  # name of the step that the script is at

    def reset(self, env: Any) -> None:
        """Begin with the scene of a raw robosuite environment as it is now, at the start or amid an episode."""
        self.begin(Scene(env))

    def begin(self, scene: Scene) -> None:
        self.scene, self.stage = scene, "start"
        self._script = self.script()

    def act(self) -> np.ndarray:
        """The next action [7] float64 in [-1, 1]; called once before every step of the environment."""
        return next(self._script)

    @abstractmethod
    def script(self) -> Generator[np.ndarray, None, None]:
        """Actions without end: once the task is done, the hand stays where it is."""
