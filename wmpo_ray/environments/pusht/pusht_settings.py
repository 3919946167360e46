"""The section of the configuration for PushT, and what is known of it without the simulator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wmpo_ray.core.section import Count
from wmpo_ray.environments.gymnasium.gymnasium_settings import ImageSize, PlainEnvironmentConfig

INSTRUCTION = "push the T onto the green T"
ACTION_DIM = 2  # the agent's target: x to the right, y downwards


class PushTConfig(PlainEnvironmentConfig):
    kind: Literal["pusht"] = "pusht"
    horizon: Annotated[int, Field(ge=1, le=10**5)] = 64  # of `action_repeat` steps each
    image_size: ImageSize = 32  # of 512; the agent is 30 wide
    action_repeat: Count = 2  # steps of the simulator, 0.1 s each, for each action
    success_coverage: Annotated[float, Field(gt=0, lt=1)] = 0.95  # share of the green T that must be covered
