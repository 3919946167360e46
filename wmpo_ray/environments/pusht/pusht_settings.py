"""The section of the configuration for PushT, and what is known of it without the simulator."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wmpo_ray.core.section import Count
from wmpo_ray.environments.gymnasium.gymnasium_settings import ImageSize, PlainEnvironmentConfig
from wmpo_ray.environments.layout import FrameLayout, Mirror, Shift

INSTRUCTION = "push the T onto the green T"
WHOLE_BOARD = 512
MAX_SPREAD_ON_FIELD = 0.4
ACTION_DIM = 2  # the agent's target: x to the right, y downwards


class PushTConfig(PlainEnvironmentConfig):
    kind: Literal["pusht"] = "pusht"
    horizon: Annotated[int, Field(ge=1, le=10**5)] = 64  # of `action_repeat` steps each
    image_size: ImageSize = 32  # of 512; the agent is 30 wide
    action_repeat: Count = 2  # steps of the simulator, 0.1 s each, for each action
    success_coverage: Annotated[float, Field(gt=0, lt=1)] = 0.95  # share of the green T that must be covered
    # Units, of 512, of the square around the green T that frames show and actions name; 512: the whole board.
    field: Annotated[int, Field(ge=200, le=512)] = 512
    start_spread: Annotated[float, Field(gt=0, le=1)] = 1.0  # how far from the green T the T starts; 1: anywhere
    # "plans": each plan is carried out to its end; "steps": it looks anew before every action, which a policy that sees
    # only the picture can learn.
    expert: Literal["plans", "steps"] = "plans"

    @model_validator(mode="after")
    def _check_field(self) -> Self:
        if self.field < WHOLE_BOARD and self.start_spread > MAX_SPREAD_ON_FIELD:
            raise ValueError(
                f"environment.start_spread = {self.start_spread}: the T would start beyond environment.field = {self.field}; "
                f"lower it to {MAX_SPREAD_ON_FIELD}, or set environment.field to {WHOLE_BOARD}"
            )
        return self


def layout_of(config: PushTConfig) -> FrameLayout:
    """A field without walls may be mirrored and moved, green T included: nothing tells one place on it from another."""
    if config.field == WHOLE_BOARD:
        return FrameLayout()
    pixel = 2 / config.image_size  # of an action
    return FrameLayout(
        mirror=Mirror(("columns",), negated=(0,)),
        shifts=(Shift(("columns",), 2, 0, pixel), Shift(("rows",), 2, 1, pixel)),
    )
