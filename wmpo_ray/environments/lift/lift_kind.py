"""The kind `lift`: robosuite's Lift, small enough for a world model that is trained on two cores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.lift.lift_settings import ACTION_DIM, INSTRUCTION, LAYOUT, SIZE, LiftConfig

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.core.interfaces import Play
    from wmpo_ray.environments.lift.lift_environment import LiftEnvironment


class LiftKind(EnvironmentKind):
    section = LiftConfig

    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        return EnvironmentFacts((SIZE, SIZE, 3), ACTION_DIM, (INSTRUCTION,), LAYOUT)

    def make(self, config: EnvironmentConfig) -> LiftEnvironment:
        from wmpo_ray.environments.lift.lift_environment import LiftEnvironment

        return LiftEnvironment.from_config(config)

    def check(self, config: EnvironmentConfig) -> None:
        from wmpo_ray.environments.robosuite.installed import load_robosuite

        load_robosuite("lift")

    def play(self, config: EnvironmentConfig, num: int, seed: int) -> Iterator[Play]:
        from wmpo_ray.environments.lift.lift_playtime import play_in_chunks

        self.check(config)
        return play_in_chunks(num, config.horizon, seed)
