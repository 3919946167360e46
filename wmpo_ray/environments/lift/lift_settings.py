"""The section of the configuration for the small Lift, and what is known of it without the simulator."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from wmpo_ray.environments.gymnasium.gymnasium_settings import PlainEnvironmentConfig

INSTRUCTION = "lift the cube"
ACTION_DIM = 4  # the hand's target x, y, z in the box, and the grip: above 0 closes
SIZE = 24  # pixels of a frame's side: two views of 24 x 12
# Metres [3, 2] of x (away from the robot), y (to its left) and z (up): what both views show and actions can name.
BOX = np.array([[-0.12, 0.12], [-0.12, 0.12], [0.795, 0.915]])


class LiftConfig(PlainEnvironmentConfig):
    kind: Literal["lift"] = "lift"
    horizon: Annotated[int, Field(ge=1, le=10**5)] = 20  # of a tenth of a second each
