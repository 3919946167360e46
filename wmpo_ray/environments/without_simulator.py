"""Kinds that are known by their facts alone: plans can be made of them, and models loaded, but no episode recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.kinds import ENVIRONMENTS

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.core.interfaces import Environment

# The real robot: recorded episodes of the same size, of which no environment can be made.
ALOHA = EnvironmentFacts((256, 256, 3), 7, ("Insert the square into the stick",))


class RecordedKind(EnvironmentKind):
    def make(self, config: EnvironmentConfig) -> Environment:
        raise _no_simulator(config)

    def check(self, config: EnvironmentConfig) -> None:
        raise _no_simulator(config)


def _no_simulator(config: EnvironmentConfig) -> ConfigError:
    simulated = sorted(name for name in ENVIRONMENTS if not isinstance(ENVIRONMENTS.find(name), RecordedKind))
    return ConfigError(
        f"environment.kind={shown(config.kind)}: this version has no simulator of it, so none of its episodes can be "
        f"recorded or evaluated; `wmpo plan` works, and runs do with environment.kind of {simulated}"
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
