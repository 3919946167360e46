"""The expert of Lift: a cube is picked up."""

from __future__ import annotations

import numpy as np

from wmpo_ray.environments.robosuite.experts.expert import Part
from wmpo_ray.environments.robosuite.experts.moves import Manipulation, Target
from wmpo_ray.environments.robosuite.experts.rotations import heading

LIFTED = 0.10  # m above the table; 0.04 are asked for
QUARTER = np.pi / 2


class LiftExpert(Manipulation):
    def attempt(self) -> Part:
        env = self.scene.env
        if not self.keeps(env.cube):
            return (yield from self._grasp())
        self.stage = "lift"
        yield from self.rise(float(env.model.mujoco_arena.table_offset[2]) + LIFTED, max_steps=25)
        return (yield from self.rest())

    def _grasp(self) -> Part:
        cube = self.scene.env.cube
        yaw = self.nearest_yaw(heading(self.scene.body(cube.root_body).rotation), QUARTER)
        return (yield from self.pick(cube, lambda: Target(self.scene.body(cube.root_body).position, yaw)))
