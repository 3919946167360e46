"""The pictures of small tabletop tasks: fingers and cubes from the front above, from the side below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wmpo_ray.environments.robosuite.offscreen_renderer import VISUAL_GROUP
from wmpo_ray.environments.robosuite.simulator import Simulator
from wmpo_ray.environments.simulators.canvas import Canvas
from wmpo_ray.environments.tabletop.box import Box
from wmpo_ray.environments.tabletop.table_layout import SIZE

SUPERSAMPLING = 4  # pixels that are drawn for one, in each direction
DISTANCE = 3.0  # metres of the cameras; from that far perspective hardly shows
AZIMUTHS = (180.0, 90.0)  # degrees: looking along -x, y to the right; looking along y, x to the right
ELEVATION = -2.0  # degrees, so that the table is seen as a line
HIDDEN_GROUP = 5
Colour = tuple[float, float, float, float]
FINGERS: Colour = (0.2, 0.9, 0.4, 1.0)
ORANGE: Colour = (1.0, 0.5, 0.1, 1.0)
BLUE: Colour = (0.3, 0.45, 1.0, 1.0)
TABLE: Colour = (0.25, 0.27, 0.30, 1.0)


class TableView(Canvas):
    """Draws the scene that its simulator is in."""

    def __init__(self, simulator: Simulator, box: Box, cubes: Mapping[str, Colour]):
        """cubes: part of the name of a body or geometry -> its colour."""
        _paint(simulator, {"finger": FINGERS, **cubes, "table": TABLE})
        simulator.model.vis.global_.fovy = float(np.degrees(2 * np.arctan(box.height / 2 / DISTANCE)))
        height, width = SIZE // 2 * SUPERSAMPLING, SIZE * SUPERSAMPLING
        super().__init__(simulator.model, height, width, sky=False, groups=(VISUAL_GROUP,))
        self._simulator = simulator
        self.cameras = [_camera(simulator.mujoco, box, azimuth) for azimuth in AZIMUTHS]

    def frame(self) -> np.ndarray:
        """[SIZE, SIZE, 3] uint8."""
        drawn = np.concatenate([self.draw(self._simulator.data, camera) for camera in self.cameras])
        blocks = drawn.reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING, 3)
        return (blocks.sum((1, 3), dtype=np.int64) // SUPERSAMPLING**2).astype(np.uint8)


def _paint(simulator: Simulator, colours: Mapping[str, Colour]) -> None:
    """Hide the arm, the hand and the room; one colour for each thing that is left, wherever it is."""
    model, names = simulator.model, simulator.env.sim.model
    for i in range(model.ngeom):
        if model.geom_group[i] != VISUAL_GROUP:
            continue
        name = f"{names.geom_id2name(i) or ''} {names.body_id2name(model.geom_bodyid[i]) or ''}"
        colour = next((rgba for word, rgba in colours.items() if word in name), None)
        model.geom_matid[i] = -1
        if colour is None:
            model.geom_group[i] = HIDDEN_GROUP
        else:
            model.geom_rgba[i] = colour
    model.vis.quality.offsamples = 0
    model.light_active[:] = 0
    for part, brightness in (("ambient", 1.0), ("diffuse", 0.0), ("specular", 0.0)):
        getattr(model.vis.headlight, part)[:] = brightness


def _camera(mujoco: Any, box: Box, azimuth: float) -> Any:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = box.middle
    camera.azimuth, camera.elevation, camera.distance = azimuth, ELEVATION, DISTANCE
    return camera


def orange_seen(frames: np.ndarray) -> np.ndarray:
    """How much of the orange cube each pixel shows, [..., 2 views, SIZE / 2, SIZE] of 0 to 1; frames [..., SIZE, SIZE, 3]."""
    red, green, blue = _channels(frames)
    return _by_view(np.clip((red - blue - 40) / 80, 0, 1) * (red > green * 1.2))


def blue_seen(frames: np.ndarray) -> np.ndarray:
    """The same of the blue cube."""
    red, green, blue = _channels(frames)
    return _by_view(np.clip((blue - red - 40) / 80, 0, 1) * (blue > green * 1.2))


def middle_of(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of the middle of what is seen [..., views, h, w], in pixels, and how much it is; each [..., views]."""
    rows, columns = (np.arange(n) + 0.5 for n in seen.shape[-2:])
    mass = seen.sum((-1, -2))
    row = (seen.sum(-1) * rows).sum(-1) / (mass + 1e-6)
    return row, (seen.sum(-2) * columns).sum(-1) / (mass + 1e-6), mass


def _channels(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pixels = np.asarray(frames).astype(np.float32)
    return pixels[..., 0], pixels[..., 1], pixels[..., 2]


def _by_view(seen: np.ndarray) -> np.ndarray:
    return seen.reshape(*seen.shape[:-2], 2, SIZE // 2, SIZE)
