"""Undirected play around the cube of the small Lift."""

from __future__ import annotations

import numpy as np

from wmpo_ray.environments.lift.lift_settings import BOX
from wmpo_ray.environments.tabletop.table_player import TablePlayer


class LiftPlay(TablePlayer):
    lift_range = (0.85, 0.91)

    def __init__(self, rng: np.random.Generator):
        super().__init__(BOX, rng)
