"""The kind `lift`: robosuite's Lift, small enough for a world model that is trained on two cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmpo_ray.environments.lift.lift_settings import INSTRUCTION, LAYOUT, LiftConfig
from wmpo_ray.environments.tabletop.table_kind import TableKind

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.environments.tabletop.table_environment import TableEnvironment
    from wmpo_ray.environments.tabletop.table_playtime import MakePlayer


class LiftKind(TableKind):
    name, instruction, layout, section = "lift", INSTRUCTION, LAYOUT, LiftConfig

    def classes(self) -> tuple[type[TableEnvironment], MakePlayer]:
        from wmpo_ray.environments.lift.lift_environment import LiftEnvironment
        from wmpo_ray.environments.lift.lift_play import LiftPlay

        return LiftEnvironment, LiftPlay
