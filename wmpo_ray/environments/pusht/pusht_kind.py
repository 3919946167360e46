"""The kind `pusht`: push a T onto its outline, the simulator of the package gym-pusht."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.pusht.pusht_settings import ACTION_DIM, INSTRUCTION, PushTConfig, layout_of

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.core.interfaces import Play
    from wmpo_ray.environments.pusht.pusht_environment import PushTEnvironment


class PushTKind(EnvironmentKind):
    section = PushTConfig

    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        assert isinstance(config, PushTConfig)
        shape = (config.image_size, config.image_size, 3)
        return EnvironmentFacts(shape, ACTION_DIM, (INSTRUCTION,), layout_of(config))

    def make(self, config: EnvironmentConfig) -> PushTEnvironment:
        from wmpo_ray.environments.pusht.pusht_environment import PushTEnvironment

        return PushTEnvironment.from_config(config)

    def check(self, config: EnvironmentConfig) -> None:
        self.make(config).check()

    def play(self, config: EnvironmentConfig, num: int, seed: int) -> Iterator[Play]:
        from wmpo_ray.environments.pusht.push_play import play_in_chunks

        assert isinstance(config, PushTConfig)
        self.check(config)
        return play_in_chunks(config, num, seed)
