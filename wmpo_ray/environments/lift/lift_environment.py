"""A small Lift for machines without a GPU: a cube is taken and raised within 20 actions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from wmpo_ray.environments.lift.lift_script import LiftScript
from wmpo_ray.environments.lift.lift_settings import BOX, INSTRUCTION
from wmpo_ray.environments.tabletop.table_environment import TableEnvironment
from wmpo_ray.environments.tabletop.table_scene import CUBE_YAW, TableScene
from wmpo_ray.environments.tabletop.table_view import ORANGE, Colour, middle_of, orange_seen

CUBE_RANGE = 0.08  # metres: the cube starts within that of the middle
LIFTED_ROW, SEEN = 7.9, 1.2  # pixels from a view's top above which the cube is lifted; pixels of it that must be seen


class LiftScene(TableScene):
    task, box, cubes, poses_file = "Lift", BOX, ("cube",), Path(__file__).with_name("arm_poses.npy")

    def draw_places(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        x, y = rng.uniform(-CUBE_RANGE, CUBE_RANGE, 2)
        return [(x, y, rng.uniform(-CUBE_YAW, CUBE_YAW))]

    def succeeded(self) -> bool:
        return self.lifted()


class LiftEnvironment(TableEnvironment):
    """Success is the cube's middle more than 4 cm above the table after an action."""

    instructions = (INSTRUCTION,)
    colours: ClassVar[Mapping[str, Colour]] = {"cube": ORANGE}

    def make_scene(self) -> LiftScene:
        return LiftScene()

    def make_script(self) -> LiftScript:
        return LiftScript()

    @staticmethod
    def detect_events(videos: np.ndarray) -> dict[str, np.ndarray]:
        """What frames [M, T+1, H, W, 3] show: `lift` [M], the cube's middle is up in a frame, in the mean of the views."""
        rows, _, mass = middle_of(orange_seen(videos))
        seen = mass > SEEN
        mean = (rows * seen).sum(-1) / np.maximum(seen.sum(-1), 1)
        return {"lift": ((mean < LIFTED_ROW) & seen.any(-1)).any(1)}
