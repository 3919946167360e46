"""The section of the configuration for the small Lift, and what is known of it without the simulator."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from wmpo_ray.environments.gymnasium.gymnasium_settings import PlainEnvironmentConfig
from wmpo_ray.environments.layout import FrameLayout, Mirror, PixelWeight, Shift, Target, View

INSTRUCTION = "lift the cube"
ACTION_DIM = 4  # the hand's target x, y, z in the box, and the grip: above 0 closes
SIZE = 24  # pixels of a frame's side: two views of 24 x 12
# Metres [3, 2] of x (away from the robot), y (to its left) and z (up): what both views show and actions can name.
BOX = np.array([[-0.12, 0.12], [-0.12, 0.12], [0.795, 0.915]])
_FRONT, _SIDE = View(0, 0, SIZE // 2, SIZE), View(SIZE // 2, 0, SIZE // 2, SIZE)
_ORANGE = ((1.0, 0.0, -1.0, 40.0), (1.0, -1.2, 0.0, 0.0))
# y to the right in the front view, x in the one from the side, and z upwards in both.
LAYOUT = FrameLayout(
    views=(_FRONT, _SIDE),
    mirror=Mirror(("columns", None), negated=(1,)),
    shifts=(Shift((None, "columns"), 3, 0, 2 / SIZE), Shift(("columns", None), 3, 1, 2 / SIZE)),
    targets=(
        Target((0.0, 1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0, 0.0)),
        Target((1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0, 0.0)),
    ),
    # A plain loss lets the fingers dominate, and the cube, whose height is the outcome, fades.
    pixel_weights=(PixelWeight(_ORANGE, 4.0, 20.0),),
)


class LiftConfig(PlainEnvironmentConfig):
    kind: Literal["lift"] = "lift"
    horizon: Annotated[int, Field(ge=1, le=10**5)] = 20  # of a tenth of a second each
