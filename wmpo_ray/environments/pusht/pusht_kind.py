"""The kind `pusht`: push a T onto its outline, the simulator of the package gym-pusht."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.pusht.pusht_settings import ACTION_DIM, INSTRUCTION, PushTConfig

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.environments.pusht.pusht_environment import PushTEnvironment


class PushTKind(EnvironmentKind):
    section = PushTConfig

    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        assert isinstance(config, PushTConfig)
        return EnvironmentFacts((config.image_size, config.image_size, 3), ACTION_DIM, (INSTRUCTION,))

    def make(self, config: EnvironmentConfig) -> PushTEnvironment:
        from wmpo_ray.environments.pusht.pusht_environment import PushTEnvironment

        return PushTEnvironment.from_config(config)

    def check(self, config: EnvironmentConfig) -> None:
        self.make(config).check()
