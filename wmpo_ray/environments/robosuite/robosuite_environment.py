"""Scenes of a task of robosuite, stepped one after the other in one simulator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.observations import StartState
from wmpo_ray.environments.finite_actions import check_finite
from wmpo_ray.environments.robosuite.disruptions import change_look, check_disruption, displace
from wmpo_ray.environments.robosuite.evaluation_starts import check_starts
from wmpo_ray.environments.robosuite.experts import has_expert, make_expert
from wmpo_ray.environments.robosuite.installed import version_of
from wmpo_ray.environments.robosuite.object_failures import ObjectFailures
from wmpo_ray.environments.robosuite.offscreen_renderer import OffscreenRenderer
from wmpo_ray.environments.robosuite.robosuite_settings import ACTION_DIM, RobosuiteConfig, instruction_of
from wmpo_ray.environments.robosuite.simulator import SceneState, Simulator
from wmpo_ray.environments.simulators.saved_scenes import check_starts_are_scenes, pack_scene, unpack_scene
from wmpo_ray.environments.simulators.simulated_scenes import SimulatedScenes

HEADER_BYTES = 16  # of a saved state: which task and versions it is of
ENDS = ("terminated", "success")


class RobosuiteEnvironment(SimulatedScenes):
    """N scenes of one task (implements `wmpo_ray.core.interfaces.AbleEnvironment`).

    An action is six deltas of the hand's pose, in units of 5 cm and 0.5 rad, and the gripper (-1 opens, 1 closes), held
    for 1/20 s by robosuite's operational space controller. An episode ends at the first success. Failures are those of
    `ObjectFailures`. The simulator is made when the first scene is placed.
    """

    action_dim = ACTION_DIM

    def __init__(self, config: RobosuiteConfig):
        self.config = config
        self.horizon = config.horizon
        self.frame_shape = (config.image_size, config.image_size, 3)
        self.instructions = (instruction_of(config),)
        self.abilities = frozenset({"render", "restore"} | ({"expert"} if has_expert(config.task) else set()))
        self._simulator: Simulator | None = None
        self._begin(0)

    @classmethod
    def from_config(cls, config: EnvironmentConfig) -> RobosuiteEnvironment:
        assert isinstance(config, RobosuiteConfig)
        return cls(config)

    def check(self) -> None:
        """See `SimulatedScenes`; the recorded starts of the task, too, are those of these versions."""
        check_starts(self.simulator(), self.config.task)
        super().check()

    def close(self) -> None:
        """Give simulator and pictures back; `restore` makes new ones."""
        if self._simulator is not None:
            self._renderer.close()
        self._simulator = None
        super().close()

    def simulator(self) -> Simulator:
        """The one of all scenes. Raises ConfigError as `check`."""
        if self._simulator is None:
            check_disruption(self.config.task, self.config.disruption)
            made = Simulator(self.config.task)
            change_look(made, self.config.disruption)
            self._renderer = OffscreenRenderer(made, self.config)
            self._watch = ObjectFailures(made)
            self._simulator = made
        return self._simulator

    # -- episodes ------------------------------------------------------------------------------------------------

    def _begin(self, n: int) -> None:
        super()._begin(n)
        self._states: list[SceneState] = [{}] * n
        self._memories: list[SceneState] = [{}] * n  # what `ObjectFailures` remembers
        self._experts: list[Any] = [None] * n
        self._shown: int | None = None  # the scene that the simulator shows, with all that follows from its state

    def restore(self, starts: Sequence[StartState]) -> None:
        """One scene for each start: as `save` left it, else that of its seed. Raises ValueError for neither."""
        check_starts_are_scenes(starts)
        self.simulator()
        self._begin(len(starts))
        self.failures = {name: np.zeros(len(starts), bool) for name in self._watch.names}
        for i, start in enumerate(starts):
            self._place(i, start.seed or 0)
            if start.saved_state is not None:
                self._load(i, start.saved_state)

    def _place(self, i: int, seed: int) -> None:
        simulator = self.simulator()
        simulator.place(seed)
        if self.config.disruption == "position":
            displace(simulator, self.config.task, seed)
        self._states[i] = simulator.state()
        self._show(i)
        self._memories[i] = self._watch.begin()

    def advance(self, actions: np.ndarray) -> None:
        """Move every scene that has not ended by one step; actions [N, 7] in [-1, 1] are clipped.

        Raises ValueError for an action that is not a number.
        """
        simulator = self.simulator()
        check_finite(actions)
        for i in np.flatnonzero(~self.terminated).tolist():
            simulator.load(self._states[i])
            simulator.step(np.clip(actions[i].astype(np.float64), -1.0, 1.0))
            self._states[i], self._shown = simulator.state(), None
            self._changed(i)
            self._show(i)
            self.success[i] = self.terminated[i] = simulator.succeeded()
            for name, failed in self._watch.note(self._memories[i], bool(self.success[i])).items():
                self.failures[name][i] |= failed

    def _show(self, i: int) -> None:
        """Let the simulator show scene i; its state does not change."""
        if self._shown != i:
            self.simulator().load(self._states[i])
            self.simulator().refresh()
            self._shown = i

    # -- saved scenes --------------------------------------------------------------------------------------------

    def save(self) -> list[bytes]:
        """Each scene as it is now, for `StartState.saved_state`: its task and versions, and float64 numbers."""
        header = self._header()
        return [pack_scene(self._parts(i), header) for i in range(len(self.terminated))]

    def _load(self, i: int, saved: bytes) -> None:
        header = self._header()
        parts = unpack_scene(i, saved, self._parts(i), header)
        if saved[: len(header)] != header:
            raise ValueError(
                f"start {i}: its saved_state is of another task, or of another version of robosuite or mujoco; here are "
                f"{self._identity()}"
            )
        for name, loaded in parts.items():
            if name in ENDS or name in self.failures:
                (self.failures[name] if name in self.failures else getattr(self, name))[i] = bool(loaded)
            else:
                (self._memories[i] if name in self._memories[i] else self._states[i])[name] = loaded
        self._shown = None

    def _parts(self, i: int) -> dict[str, np.ndarray]:
        """Everything that scene i consists of."""
        ends = {name: getattr(self, name)[i] for name in ENDS}
        failed = {name: flags[i] for name, flags in self.failures.items()}
        return {**self._states[i], **self._memories[i], **ends, **failed}

    def _identity(self) -> str:
        versions = ", ".join(f"{package} {version_of(package)}" for package in ("robosuite", "mujoco"))
        return f"{self.config.task}, {versions}"

    def _header(self) -> bytes:
        return hashlib.sha256(self._identity().encode()).digest()[:HEADER_BYTES]

    def _draw(self, i: int) -> np.ndarray:
        self._show(i)
        return self._renderer.render()

    # -- the expert ----------------------------------------------------------------------------------------------

    def expert_action(self, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
        """Actions [N, 7] of the script of the task; `noise`, in units of an action, is added to the six deltas."""
        actions = np.zeros((len(self.terminated), self.action_dim))
        for i in np.flatnonzero(~self.terminated).tolist():
            self._show(i)
            if self._experts[i] is None:
                self._experts[i] = make_expert(self.config.task)
                self._experts[i].reset(self.simulator().env)
            actions[i] = self._experts[i].act()
        actions[:, :-1] += rng.normal(0, 1, actions[:, :-1].shape) * noise
        return np.clip(actions, -1, 1).astype(np.float32)
