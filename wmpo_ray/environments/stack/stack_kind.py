"""The kind `stack`: robosuite's Stack, small enough for a world model that is trained on two cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmpo_ray.environments.stack.stack_settings import INSTRUCTION, LAYOUT, StackConfig
from wmpo_ray.environments.tabletop.table_kind import TableKind

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.environments.tabletop.table_environment import TableEnvironment
    from wmpo_ray.environments.tabletop.table_playtime import MakePlayer


class StackKind(TableKind):
    name, instruction, layout, section = "stack", INSTRUCTION, LAYOUT, StackConfig

    def classes(self) -> tuple[type[TableEnvironment], MakePlayer]:
        from wmpo_ray.environments.stack.stack_environment import StackEnvironment
        from wmpo_ray.environments.stack.stack_play import StackPlay

        return StackEnvironment, StackPlay
