"""A small Stack for machines without a GPU: one cube is put on another within 36 actions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from wmpo_ray.environments.stack.stack_script import StackScript
from wmpo_ray.environments.stack.stack_settings import BOX, INSTRUCTION
from wmpo_ray.environments.tabletop.table_environment import TableEnvironment
from wmpo_ray.environments.tabletop.table_scene import CUBE_YAW, TableScene
from wmpo_ray.environments.tabletop.table_view import BLUE, ORANGE, Colour, blue_seen, middle_of, orange_seen

CUBE_RANGE = 0.08  # metres: both cubes start within that of the middle
APART = np.array([0.06, 0.09])  # metres in x or y between them, so that the fingers, which open along y, have room
# Pixels from the lower cube's middle up to the upper one's, of 3.9 that it takes, and how far beside it may be seen.
OVER, BESIDE, SEEN = 2.8, 1.8, 1.2


class StackScene(TableScene):
    task, box, cubes, poses_file = "Stack", BOX, ("cubeA", "cubeB"), Path(__file__).with_name("arm_poses.npy")

    def draw_places(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        while True:
            places = rng.uniform(-CUBE_RANGE, CUBE_RANGE, (2, 2))
            if (np.abs(places[0] - places[1]) > APART).any():
                return [(x, y, rng.uniform(-CUBE_YAW, CUBE_YAW)) for x, y in places]

    def succeeded(self) -> bool:
        return self.simulator.succeeded()

    def dropped(self) -> bool:
        """On the table again; between fingers that open and the other cube it is on its way."""
        return super().dropped() and not self.lifted()


class StackEnvironment(TableEnvironment):
    """Success is robosuite's after an action: the first cube is off the table, touches the other, and is not held."""

    instructions = (INSTRUCTION,)
    colours: ClassVar[Mapping[str, Colour]] = {"cubeA": ORANGE, "cubeB": BLUE}

    def make_scene(self) -> StackScene:
        return StackScene()

    def make_script(self) -> StackScript:
        return StackScript()

    @staticmethod
    def detect_events(videos: np.ndarray) -> dict[str, np.ndarray]:
        """What frames [M, T+1, H, W, 3] show: `over` [M], in a frame both views have the first cube over the other."""
        upper_row, upper_column, upper = middle_of(orange_seen(videos))
        lower_row, lower_column, lower = middle_of(blue_seen(videos))
        over = (lower_row - upper_row > OVER) & (np.abs(upper_column - lower_column) < BESIDE)
        return {"over": (over & (upper > SEEN) & (lower > SEEN)).all(-1).any(1)}
