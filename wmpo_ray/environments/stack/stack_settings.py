"""The section of the configuration for the small Stack, and what is known of it without the simulator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wmpo_ray.environments.gymnasium.gymnasium_settings import PlainEnvironmentConfig
from wmpo_ray.environments.layout import PixelWeight
from wmpo_ray.environments.tabletop.box import Box
from wmpo_ray.environments.tabletop.table_layout import ORANGE_PIXELS, table_layout

INSTRUCTION = "put the orange cube on the blue one"
# Higher than that of Lift, since a cube is carried over another: a pixel shows 12 mm.
BOX = Box((-0.14, -0.14, 0.795), (0.14, 0.14, 0.935))
_BLUE_PIXELS = ((-1.0, 0.0, 1.0, 40.0), (0.0, -1.2, 1.0, 0.0))
LAYOUT = table_layout(PixelWeight(ORANGE_PIXELS, 4.0, 20.0), PixelWeight(_BLUE_PIXELS, 1.0, 10.0))


class StackConfig(PlainEnvironmentConfig):
    kind: Literal["stack"] = "stack"
    horizon: Annotated[int, Field(ge=1, le=10**5)] = 36  # of a tenth of a second each
