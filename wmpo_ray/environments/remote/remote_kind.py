"""The kind `remote`: a simulator in another process, with another Python or on another machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.frame_sizes import height_and_width
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.remote.remote_settings import RemoteConfig

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.environments.remote.remote_environment import RemoteEnvironment


class RemoteKind(EnvironmentKind):
    section = RemoteConfig

    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        own = cast(RemoteConfig, config)
        return EnvironmentFacts((*height_and_width(own.frame_size), 3), own.action_dim, own.instructions)

    def make(self, config: EnvironmentConfig) -> RemoteEnvironment:
        from wmpo_ray.environments.remote.remote_environment import RemoteEnvironment

        return RemoteEnvironment.from_config(config)

    def check(self, config: EnvironmentConfig) -> None:
        self.make(config).close()
