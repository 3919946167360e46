"""The section of the configuration for environments that are registered with gymnasium."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.section import Count, shown

ImageSize = Annotated[int, Field(ge=4, le=4096)]  # pixels
RENDER = "render"  # the image key of what `render()` returns


class PlainEnvironmentConfig(EnvironmentConfig):
    """Of environments with one task and no disruptions."""

    @model_validator(mode="after")
    def _check_plain(self) -> Self:
        for key, only in (("task", ""), ("disruption", "none")):
            if (value := getattr(self, key)) != only:
                raise ValueError(
                    f"environment.{key} = {shown(value)}: environments of kind {shown(self.kind)} have no {key}; set it to "
                    f"{shown(only)}"
                )
        return self


class GymnasiumConfig(PlainEnvironmentConfig):
    kind: Literal["gymnasium"] = "gymnasium"
    id: str = ""  # such as "CarRacing-v3"
    import_name: str = ""  # a module to import first, which registers the id; "": none
    make_arguments: dict[str, Any] = Field(default_factory=dict)  # for gymnasium.make: strings, numbers, true and false
    action_dim: Count = 1  # D, the size of its action space; checked when it is made
    # Where the image [H, W, 3] uint8 is: "" is the observation itself, a name one of its entries, "render" render().
    image_key: str = ""
    image_size: ImageSize = 64  # frames are reduced to this height and width, by area
    success_key: str = "is_success"  # in info, after every step; "": to be terminated is to succeed
    instruction: Annotated[str, Field(min_length=1, max_length=1000)] = "do the task"
    action_repeat: Count = 1  # steps of the environment for each action

    @field_validator("make_arguments")
    @classmethod
    def _check_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        wrong = [name for name, value in arguments.items() if not isinstance(value, str | int | float)]
        if wrong:
            raise ValueError(
                f"environment.make_arguments.{wrong[0]} = {shown(arguments[wrong[0]])}: an argument must be a string, a "
                "number, true or false; change or remove it"
            )
        return arguments

    @model_validator(mode="after")
    def _check_id(self) -> Self:
        if not self.id:
            raise ValueError('environment.id = "": it must be the id of a registered environment; set environment.id')
        return self
