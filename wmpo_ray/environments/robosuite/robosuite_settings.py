"""The section of the configuration for robosuite, and what is known of its tasks without the simulator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from wmpo_ray.config.environments import named_tasks
from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.section import shown
from wmpo_ray.environments.gymnasium.gymnasium_settings import ImageSize

ACTION_DIM = 7  # six deltas of the hand's pose, at most 5 cm and 0.5 rad each, and the gripper: -1 opens, 1 closes
DEFAULT_TASK = "Lift"
DEFAULT_HORIZON = 400  # of tasks without an own one: what robomimic uses
HORIZONS = {"Lift": 64, "Stack": 128, "NutAssemblySquare": 184}  # twice what the experts need, or the paper's
INSTRUCTIONS = {
    "Lift": "lift the cube",
    "Stack": "stack the red cube on the green cube",
    "NutAssembly": "put the nuts onto their pegs",
    "NutAssemblySquare": "put the square nut onto the square peg",
    "NutAssemblyRound": "put the round nut onto the round peg",
    "PickPlace": "put the objects into their bins",
    "PickPlaceMilk": "put the milk into its bin",
    "PickPlaceBread": "put the bread into its bin",
    "PickPlaceCereal": "put the cereal into its bin",
    "PickPlaceCan": "put the can into its bin",
    "Door": "open the door",
}
_NAME = re.compile(r"[A-Za-z]\w{0,59}")


class RobosuiteConfig(EnvironmentConfig):
    instructions: ClassVar[Mapping[str, str]] = INSTRUCTIONS  # of tasks, where the settings have none

    kind: Literal["robosuite"] = "robosuite"
    task: str = DEFAULT_TASK  # the name of any task of robosuite for one arm
    # Steps of 1/20 s; where it is not set, the longest of the tasks in `HORIZONS`.
    horizon: Annotated[int, Field(ge=1, le=10**5)] = HORIZONS[DEFAULT_TASK]
    instruction: Annotated[str, Field(max_length=1000)] = ""  # "": that of the task
    camera: str = "agentview"  # or frontview, birdview, sideview, robot0_eye_in_hand
    image_size: ImageSize = 64  # height and width that are rendered
    # Of the picture, so of all data of a run. Shadows and reflections take half of the time of rendering.
    multisampling: Literal[0, 2, 4, 8, 16] = 4  # samples of a pixel
    shadows: bool = False
    reflections: bool = False

    @model_validator(mode="before")
    @classmethod
    def _default_horizon(cls, data: Any) -> Any:
        if isinstance(data, dict) and "horizon" not in data:
            return {**data, "horizon": max(default_horizon(task) for task in named_tasks(data, DEFAULT_TASK))}
        return data

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for key in ("task", "camera"):
            if not _NAME.fullmatch(value := getattr(self, key)):
                raise ValueError(
                    f"environment.{key} = {shown(value)}: it must be the name of a {key} of robosuite, such as "
                    f'"{type(self).model_fields[key].default}"; set environment.{key}'
                )
        return self


def default_horizon(task: str) -> int:
    return HORIZONS.get(task, DEFAULT_HORIZON)


def instruction_of(config: RobosuiteConfig) -> str:
    """That of the settings, of the table, or the task's name in words: "TwoWords" -> "two words"."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", config.task).replace("_", " ").lower()
    return config.instruction or config.instructions.get(config.task, words)
