"""Kinds that are known by their facts alone: recorded episodes can be learned from, but none can be recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import model_validator

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.kinds import ENVIRONMENTS

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.core.interfaces import Environment
    from wmpo_ray.core.observations import Observation, StartState

# The real robot: recorded episodes of the same size, of which no environment can be made.
ALOHA = EnvironmentFacts((256, 256, 3), 7, ("Insert the square into the stick",))


class RecordedKind(EnvironmentKind):
    def make(self, config: EnvironmentConfig) -> Environment:
        return RecordedEnvironment(config, self.facts(config))

    def check(self, config: EnvironmentConfig) -> None:
        raise _no_simulator(config)


class RecordedEnvironment:
    """No scene can be placed: it has no abilities (implements `wmpo_ray.core.interfaces.Environment`).

    So stages that only ask what it can do need no simulator. Raises ConfigError for everything else.
    """

    abilities: frozenset[str] = frozenset()

    def __init__(self, config: EnvironmentConfig, facts: EnvironmentFacts):
        self.config = config
        self.horizon, self.action_dim, self.frame_shape = config.horizon, facts.action_dim, facts.frame_shape
        self.terminated, self.success = np.zeros((2, 0), bool)
        self.failures: dict[str, np.ndarray] = {}

    def restore(self, starts: Sequence[StartState]) -> None:
        raise _no_simulator(self.config)

    def advance(self, actions: np.ndarray) -> None:
        raise _no_simulator(self.config)

    def observe(self) -> Observation:
        raise _no_simulator(self.config)

    def render(self) -> np.ndarray:
        raise _no_simulator(self.config)


def _no_simulator(config: EnvironmentConfig) -> ConfigError:
    simulated = sorted(name for name in ENVIRONMENTS if not isinstance(ENVIRONMENTS.find(name), RecordedKind))
    return ConfigError(
        f"environment.kind={shown(config.kind)}: this version has no simulator of it, so none of its episodes can be "
        f"recorded or evaluated; recorded ones can be learned from, `wmpo plan` works, and there are simulators for "
        f"environment.kind of {simulated}"
    )


class AlohaConfig(EnvironmentConfig):
    kind: Literal["aloha"] = "aloha"

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        if self.task:
            raise ValueError(f'environment.task={shown(self.task)}: aloha has one task; set environment.task to ""')
        return self


class AlohaKind(RecordedKind):
    section = AlohaConfig

    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        return ALOHA
