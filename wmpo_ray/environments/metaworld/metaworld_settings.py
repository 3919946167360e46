"""The section of the configuration for Meta-World, and what is known of it without the simulator."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.section import Count, shown
from wmpo_ray.environments.gymnasium.gymnasium_settings import ImageSize
from wmpo_ray.environments.metaworld.metaworld_tasks import TASKS

ACTION_DIM = 4  # x, y, z of the hand, by a centimetre a step at most, and the effort that closes the gripper
Camera = Literal["corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV"]


class MetaWorldConfig(EnvironmentConfig):
    kind: Literal["metaworld"] = "metaworld"
    task: str = "drawer-open-v3"  # of Meta-World, such as "reach-v3"
    horizon: Annotated[int, Field(ge=1, le=10**5)] = 64  # of `action_repeat` steps each
    image_size: ImageSize = 64  # height and width
    camera: Camera = "corner2"
    action_repeat: Count = 4  # steps of the simulator, 1/80 s each, for each action

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"environment.task={shown(task)}: known tasks of metaworld are {', '.join(TASKS)}")
        return task

    @model_validator(mode="after")
    def _check_disruption(self) -> Self:
        if self.disruption == "position":
            raise ValueError(
                'environment.disruption = "position": Meta-World\'s tasks are solvable only where it places their '
                'objects; set it to "none", "background" or "texture"'
            )
        return self
