"""The kind `pocket`: the embedded task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.section import shown
from wmpo_ray.environments.environment_kind import EnvironmentKind
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.environments.layout import FrameLayout, Mirror
from wmpo_ray.environments.pocket.geometry import TASKS

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.core.interfaces import Environment, Play
    from wmpo_ray.environments.pocket.env import PocketEnvironment

# Upside down the scene is another start of the same task: pockets differ by colour, and an action's y is its second number.
LAYOUT = FrameLayout(mirror=Mirror(axes=("rows",), negated=(1,)))


class PocketConfig(EnvironmentConfig):
    kind: Literal["pocket"] = "pocket"

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        if self.task not in TASKS:
            raise ValueError(
                f'environment.task = {shown(self.task)}: the tasks of pocket are "" or "pocket" (push the block into its '
                'pocket), "place" (and let go of it there) and "push" (onto a mark); set environment.task or change '
                "environment.kind"
            )
        return self


class PocketKind(EnvironmentKind):
    section = PocketConfig

    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        own = _class_of(config.task)
        return EnvironmentFacts(own.frame_shape, own.action_dim, own.instructions, LAYOUT)

    def make(self, config: EnvironmentConfig) -> Environment:
        return _class_of(config.task).from_config(config)

    def disruptions(self, config: EnvironmentConfig) -> tuple[str, ...]:
        return ("position", "background", "texture")

    def play(self, config: EnvironmentConfig, num: int, seed: int) -> Iterator[Play]:
        from wmpo_ray.environments.pocket.play import play_in_chunks

        return play_in_chunks(num, config.horizon, seed, environment=_class_of(config.task))


def _class_of(task: str) -> type[PocketEnvironment]:
    from wmpo_ray.environments.pocket.env import PocketEnvironment
    from wmpo_ray.environments.pocket.push import PushEnvironment

    return PushEnvironment if task in PushEnvironment.tasks else PocketEnvironment
