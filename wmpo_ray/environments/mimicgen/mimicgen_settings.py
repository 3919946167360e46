"""The section of the configuration for MimicGen, and what is known of its tasks without the simulator."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from wmpo_ray.config.environments import named_tasks
from wmpo_ray.core.section import check_local, shown
from wmpo_ray.environments.gymnasium.gymnasium_settings import ImageSize
from wmpo_ray.environments.robosuite.robosuite_settings import RobosuiteConfig

# The instruction is what the published policies were trained with: for most tasks no more than the task's name.
INSTRUCTIONS = {
    "Coffee_D0": "coffee",
    "StackThree_D0": "stack_three",
    "ThreePieceAssembly_D0": "three_piece_assembly",
    "Square_D0": "Insert the square into the stick",
}
# Steps of an episode, as the paper has them.
HORIZONS = {"Coffee_D0": 256, "StackThree_D0": 320, "ThreePieceAssembly_D0": 384, "Square_D0": 184}
DEFAULT_TASK = "Coffee_D0"


class MimicGenConfig(RobosuiteConfig):
    instructions = INSTRUCTIONS
    places = frozenset({"checkout"})

    kind: Literal["mimicgen"] = "mimicgen"  # type: ignore[assignment]  # one kind is never the other
    task: str = DEFAULT_TASK
    horizon: int = HORIZONS[DEFAULT_TASK]  # where it is not set, the longest of the tasks in `HORIZONS`
    image_size: ImageSize = 256  # as the published world models have it
    # The folder of a checkout of NVIDIA's MimicGen; "": the module `mimicgen` is found without it.
    checkout: str = ""

    @model_validator(mode="before")
    @classmethod
    def _default_horizon(cls, data: Any) -> Any:
        if isinstance(data, dict) and "horizon" not in data:
            return {**data, "horizon": max(HORIZONS.get(task, 1) for task in named_tasks(data, DEFAULT_TASK))}
        return data

    @field_validator("checkout")
    @classmethod
    def _check_checkout(cls, path: str) -> str:
        return check_local(path, "environment.checkout")

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        if self.task not in INSTRUCTIONS:
            known = ", ".join(INSTRUCTIONS)
            raise ValueError(f"environment.task={shown(self.task)}: known tasks of mimicgen are {known}")
        return self
