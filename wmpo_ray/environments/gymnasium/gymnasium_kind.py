"""The kind `gymnasium`: any environment that is registered there and has bounded continuous actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.gymnasium.gymnasium_settings import GymnasiumConfig

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.environments.gymnasium.gymnasium_environment import GymnasiumEnvironment


class GymnasiumKind(EnvironmentKind):
    section = GymnasiumConfig

    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        own = cast(GymnasiumConfig, config)
        return EnvironmentFacts((own.image_size, own.image_size, 3), own.action_dim, (own.instruction,))

    def make(self, config: EnvironmentConfig) -> GymnasiumEnvironment:
        from wmpo_ray.environments.gymnasium.gymnasium_environment import GymnasiumEnvironment

        return GymnasiumEnvironment.from_config(config)

    def check(self, config: EnvironmentConfig) -> None:
        self.make(config).check()
