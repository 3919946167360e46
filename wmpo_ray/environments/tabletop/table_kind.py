"""What the kinds of small tabletop tasks share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.layout import FrameLayout
from wmpo_ray.environments.tabletop.table_layout import ACTION_DIM, SIZE

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.core.interfaces import Play
    from wmpo_ray.environments.tabletop.table_environment import TableEnvironment
    from wmpo_ray.environments.tabletop.table_playtime import MakePlayer


class TableKind(EnvironmentKind):
    name: ClassVar[str]
    instruction: ClassVar[str]
    layout: ClassVar[FrameLayout]

    @abstractmethod
    def classes(self) -> tuple[type[TableEnvironment], MakePlayer]:
        """The environment, and how a player is made for its play; imported here."""

    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        return EnvironmentFacts((SIZE, SIZE, 3), ACTION_DIM, (self.instruction,), self.layout)

    def make(self, config: EnvironmentConfig) -> TableEnvironment:
        return self.classes()[0](config.horizon)

    def check(self, config: EnvironmentConfig) -> None:
        from wmpo_ray.environments.robosuite.installed import load_robosuite

        load_robosuite(self.name)

    def play(self, config: EnvironmentConfig, num: int, seed: int) -> Iterator[Play]:
        from wmpo_ray.environments.tabletop.table_playtime import play_in_chunks

        self.check(config)
        environment, make_player = self.classes()
        return play_in_chunks(environment(config.horizon, ends_on_success=False), make_player, num, seed)
