"""The section of the configuration for the small Lift, and what is known of it without the simulator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wmpo_ray.environments.gymnasium.gymnasium_settings import PlainEnvironmentConfig
from wmpo_ray.environments.layout import PixelWeight
from wmpo_ray.environments.tabletop.box import Box
from wmpo_ray.environments.tabletop.table_layout import ORANGE_PIXELS, table_layout

INSTRUCTION = "lift the cube"
BOX = Box((-0.12, -0.12, 0.795), (0.12, 0.12, 0.915))
# A plain loss lets the fingers dominate, and the cube, whose height is the outcome, fades.
LAYOUT = table_layout(PixelWeight(ORANGE_PIXELS, 4.0, 20.0))


class LiftConfig(PlainEnvironmentConfig):
    kind: Literal["lift"] = "lift"
    horizon: Annotated[int, Field(ge=1, le=10**5)] = 20  # of a tenth of a second each
