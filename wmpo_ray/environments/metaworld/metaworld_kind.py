"""The kind `metaworld`: the fifty tasks of Meta-World, a Sawyer arm above a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.metaworld.metaworld_settings import ACTION_DIM, MetaWorldConfig
from wmpo_ray.environments.metaworld.metaworld_tasks import TASKS

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.environments.metaworld.metaworld_environment import MetaWorldEnvironment


class MetaWorldKind(EnvironmentKind):
    section = MetaWorldConfig

    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        assert isinstance(config, MetaWorldConfig)
        size = config.image_size
        return EnvironmentFacts((size, size, 3), ACTION_DIM, (TASKS[config.task].instruction,))

    def make(self, config: EnvironmentConfig) -> MetaWorldEnvironment:
        from wmpo_ray.environments.metaworld.metaworld_environment import MetaWorldEnvironment

        return MetaWorldEnvironment.from_config(config)

    def check(self, config: EnvironmentConfig) -> None:
        self.make(config).check()

    def disruptions(self, config: EnvironmentConfig) -> tuple[str, ...]:
        return ("background", "texture")
