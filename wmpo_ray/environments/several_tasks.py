"""Several tasks of one kind as one environment: each scene is that of its start's task, stepped by that task's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from wmpo_ray.config.environments import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import AbleEnvironment, Environment
from wmpo_ray.core.observations import Observation, StartState
from wmpo_ray.environments.task_of_start import Tasks, tasks_of

END_OF_NAME = b"\0"  # before a saved scene stands the name of its task


class SeveralTasks:
    """N scenes of several environments stepped together (implements `interfaces.Environment`).

    Its abilities are those that all of them have. A scene is what it would be in its own environment alone; a task has the
    failures of all of them, of which others than its own never happen.
    """

    def __init__(self, environments: Mapping[str, Environment], tasks: Tasks):
        """environments: by the name of their task. Raises ConfigError for frames or actions that differ."""
        self.environments, self.tasks = dict(environments), tasks
        first = next(iter(self.environments.values()))
        self.horizon, self.action_dim, self.frame_shape = first.horizon, first.action_dim, first.frame_shape
        for name, each in self.environments.items():
            if (each.frame_shape, each.action_dim, each.horizon) != (self.frame_shape, self.action_dim, self.horizon):
                raise ConfigError(
                    f"environment.task_names: {name} has other frames, actions or another horizon; remove it"
                )
        shared = frozenset.intersection(*(each.abilities for each in self.environments.values()))
        self.abilities = shared - {"chunks"}
        if {"positions", "locate"} & shared:
            self.position_unit = cast(AbleEnvironment, first).position_unit
        self._size, self._rows = 0, dict[str, np.ndarray]()  # rows [n] of the scenes of each task that has any

    # -- scenes --------------------------------------------------------------------------------------------------

    def restore(self, starts: Sequence[StartState]) -> None:
        """Place one scene for each start, see `Tasks.of_start`; a saved state names its task itself."""
        parts: dict[str, list[tuple[int, StartState]]] = {name: [] for name in self.environments}
        for i, start in enumerate(starts):
            if start.seed is None and start.saved_state is None:
                raise ValueError(
                    f"start {i} has no scene (seed and saved_state are None), so that it cannot be rebuilt"
                )
            name, own = self._own_start(i, start)
            parts[name].append((i, own))
        self._size = len(starts)
        self._rows = {name: np.array([i for i, _ in part]) for name, part in parts.items() if part}
        for name, part in parts.items():  # of a task without any, too: what its failures are called is known then
            self.environments[name].restore([start for _, start in part])

    def _own_start(self, i: int, start: StartState) -> tuple[str, StartState]:
        if start.saved_state is None:
            return self.tasks.of_start(start), start
        name, end, saved = start.saved_state.partition(END_OF_NAME)
        task = name.decode(errors="replace")
        if not end or task not in self.environments:
            raise ValueError(f"start {i}: its saved_state has {len(start.saved_state)} bytes and names no task")
        return task, replace(start, saved_state=saved)

    def save(self) -> list[bytes]:
        return self._joined(
            lambda name, env: [name.encode() + END_OF_NAME + saved for saved in cast(AbleEnvironment, env).save()]
        )

    def advance(self, actions: np.ndarray) -> None:
        for name, rows in self._rows.items():
            self.environments[name].advance(actions[rows])

    def close(self) -> None:
        for each in self.environments.values():
            if hasattr(each, "close"):
                cast(Any, each).close()

    # -- what is known of them -------------------------------------------------------------------------------------

    @property
    def terminated(self) -> np.ndarray:
        return np.array(self._joined(lambda name, env: env.terminated), bool)

    @property
    def success(self) -> np.ndarray:
        return np.array(self._joined(lambda name, env: env.success), bool)

    @property
    def failures(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for task, environment in self.environments.items():
            rows = self._rows.get(task)
            for name, flags in environment.failures.items():
                whole = found.setdefault(name, np.zeros(self._size, bool))
                if rows is not None:
                    whole[rows] = flags
        return found

    @property
    def instructions(self) -> tuple[str, ...]:
        return tuple(self.tasks.by_instruction)

    def observe(self) -> Observation:
        parts = [self.environments[name].observe() for name in self._rows]
        if not parts:
            return next(iter(self.environments.values())).observe()
        order = np.argsort(np.concatenate(list(self._rows.values())))
        return Observation.joined(parts).rows(order)

    def render(self) -> np.ndarray:
        frames = self._joined(lambda name, env: env.render())
        return np.stack(frames) if frames else np.zeros((0, *self.frame_shape), np.uint8)

    def positions(self) -> dict[str, np.ndarray]:
        """Of all tasks' objects; NaN for what a scene's own task has not."""
        found: dict[str, np.ndarray] = {}
        for task, rows in self._rows.items():
            for name, place in cast(AbleEnvironment, self.environments[task]).positions().items():
                found.setdefault(name, np.full((self._size, place.shape[1]), np.nan))[rows] = place
        return found

    # -- the script and what videos show -----------------------------------------------------------------------------

    def expert_action(self, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
        """Actions [N, D] of each task's script, one task after the other."""
        chosen = np.zeros((self._size, self.action_dim), np.float32)
        for name, rows in self._rows.items():
            chosen[rows] = cast(AbleEnvironment, self.environments[name]).expert_action(rng, noise)
        return chosen

    def detect_events(self, videos: np.ndarray) -> dict[str, np.ndarray]:
        """Events of all tasks; of those with the same name, as the first task sees them."""
        found: dict[str, np.ndarray] = {}
        for environment in self.environments.values():
            found = cast(AbleEnvironment, environment).detect_events(videos) | found
        return found

    def locate(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """As each task sees them, the first one where several see the same name."""
        found: dict[str, np.ndarray] = {}
        for environment in self.environments.values():
            found = cast(AbleEnvironment, environment).locate(frames) | found
        return found

    def detect_failures(
        self, videos: np.ndarray, actions: np.ndarray, instructions: Sequence[str], lengths: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Each video is judged by the task of its instruction."""
        whole, names = dict[str, np.ndarray](), self.tasks.of_instructions(instructions)
        for task, environment in self.environments.items():
            rows = np.flatnonzero(names == task)
            texts = [instructions[i] for i in rows.tolist()]
            seen = cast(AbleEnvironment, environment).detect_failures(
                videos[rows], actions[rows], texts, np.asarray(lengths)[rows]
            )
            for name, flags in seen.items():
                whole.setdefault(name, np.zeros(len(videos), bool))[rows] = flags
        return whole

    def _joined(self, of: Callable[[str, Environment], Any]) -> list[Any]:
        """What `of` gives for the scenes of each task, in the order of the scenes."""
        found: list[Any] = [None] * self._size
        for name, rows in self._rows.items():
            for row, value in zip(rows.tolist(), of(name, self.environments[name]), strict=True):
                found[row] = value
        return found


def make_several(config: EnvironmentConfig, make: Callable[[EnvironmentConfig], Environment]) -> Environment:
    """`make`: the environment of one task. Raises ConfigError for tasks that cannot be one environment."""
    tasks = tasks_of(config)
    assert tasks is not None
    environments = {name: make(section) for name, section in config.variants.items()}
    return cast(Environment, SeveralTasks(environments, tasks))  # whose state is computed when it is looked at
