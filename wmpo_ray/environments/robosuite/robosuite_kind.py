"""The kind `robosuite`: its tasks for one arm, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.robosuite.robosuite_settings import ACTION_DIM, RobosuiteConfig, instruction_of

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.environments.robosuite.robosuite_environment import RobosuiteEnvironment


class RobosuiteKind(EnvironmentKind):
    section = RobosuiteConfig

    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        assert isinstance(config, RobosuiteConfig)
        return EnvironmentFacts((config.image_size, config.image_size, 3), ACTION_DIM, (instruction_of(config),))

    def make(self, config: EnvironmentConfig) -> RobosuiteEnvironment:
        from wmpo_ray.environments.robosuite.robosuite_environment import RobosuiteEnvironment

        return RobosuiteEnvironment.from_config(config)

    def check(self, config: EnvironmentConfig) -> None:
        self.make(config).check()

    def disruptions(self, config: EnvironmentConfig) -> tuple[str, ...]:
        from wmpo_ray.environments.robosuite.disruptions import disruptions_of

        return disruptions_of(config.task)
