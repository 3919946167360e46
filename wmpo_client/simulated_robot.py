"""A robot that is a scene of a served simulator: to try everything without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wmpo_client.drive import Robot
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.safety import SafetyLimits
from wmpo_client.scenes import Scenes, SceneView
from wmpo_client.served_policy import Seen


@dataclass(frozen=True)
class SceneStart:
    seed: int
    task: str = ""
    instruction: str = ""
    saved_state: bytes | None = None


class SimulatedRobot(Robot):
    """An action is a step of the scene; `hold` lets it stand. The simulator knows whether the task is done.

    knows_outcome: whether it says so; without, an episode has no verdict, as one of a real robot may.
    """

    decided_by = "environment"

    def __init__(self, scenes: Scenes, knows_outcome: bool = True):
        self.scenes, self.knows_outcome = scenes, knows_outcome
        facts = scenes.capabilities()
        self.horizon, self.action_dims = facts.horizon, facts.action_dims
        self._view: SceneView | None = None
        self._num_steps = 0

    def reset(self, seed: int) -> None:
        """Place the scene of a seed."""
        self.scenes.reset([SceneStart(seed)])
        self.seed, self._num_steps = seed, 0
        self._view = self.scenes.observe()
        self.failure_names = sorted(self.scenes.failures)

    def see(self) -> Seen:
        assert self._view is not None, "reset comes first"
        view = self._view
        images = {camera: frames[0] for camera, frames in view.images.items()}
        return Seen(images, view.instructions[0], None if view.state is None else view.state[0])

    def apply(self, action: np.ndarray) -> None:
        made = self.scenes.step(action[None, None], pb.LAST)
        self._num_steps += 1
        self._view = made.view

    def hold(self) -> None:
        """A scene without an action does not move."""

    def verdict(self) -> bool | None:
        if self.knows_outcome and (self.scenes.terminated[0] or self._num_steps >= self.horizon):
            return bool(self.scenes.success[0])
        return None

    @property
    def is_over(self) -> bool:
        return bool(self.scenes.terminated[0])

    def failures(self) -> Sequence[str]:
        return sorted(name for name, flags in self.scenes.failures.items() if flags[0])


def free_limits(action_dims: int, **changes: Any) -> SafetyLimits:
    """Limits that let every action in [-1, 1] through: for a simulator, which cannot be hurt."""
    unlimited = (float("inf"),) * action_dims
    limits: dict[str, Any] = {"step": unlimited, "velocity": unlimited, "watchdog_s": 5.0, **changes}
    return SafetyLimits((-1.0,) * action_dims, (1.0,) * action_dims, **limits)
