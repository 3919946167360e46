"""The pictures of the small Lift: fingers and cube from the front above, from the side below."""

from __future__ import annotations

from typing import Any

import numpy as np

from wmpo_ray.environments.lift.lift_settings import BOX, SIZE
from wmpo_ray.environments.robosuite.offscreen_renderer import VISUAL_GROUP
from wmpo_ray.environments.robosuite.simulator import Simulator
from wmpo_ray.environments.simulators.canvas import Canvas

SUPERSAMPLING = 4  # pixels that are drawn for one, in each direction
DISTANCE = 3.0  # metres of the cameras; from that far perspective hardly shows
AZIMUTHS = (180.0, 90.0)  # degrees: looking along -x, y to the right; looking along y, x to the right
ELEVATION = -2.0  # degrees, so that the table is seen as a line
HIDDEN_GROUP = 5
COLOURS = {"finger": (0.2, 0.9, 0.4, 1.0), "cube": (1.0, 0.5, 0.1, 1.0), "table": (0.25, 0.27, 0.30, 1.0)}


class LiftView(Canvas):
    """Draws the scene that its simulator is in."""

    def __init__(self, simulator: Simulator):
        _paint(simulator)
        height, width = SIZE // 2 * SUPERSAMPLING, SIZE * SUPERSAMPLING
        super().__init__(simulator.model, height, width, sky=False, groups=(VISUAL_GROUP,))
        self._simulator = simulator
        self.cameras = [_camera(simulator.mujoco, azimuth) for azimuth in AZIMUTHS]

    def frame(self) -> np.ndarray:
        """[SIZE, SIZE, 3] uint8."""
        drawn = np.concatenate([self.draw(self._simulator.data, camera) for camera in self.cameras])
        blocks = drawn.reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING, 3)
        return (blocks.sum((1, 3), dtype=np.int64) // SUPERSAMPLING**2).astype(np.uint8)


def _paint(simulator: Simulator) -> None:
    """Hide the arm, the hand and the room; one colour for each thing that is left, wherever it is."""
    model, names = simulator.model, simulator.env.sim.model
    for i in range(model.ngeom):
        if model.geom_group[i] != VISUAL_GROUP:
            continue
        name = f"{names.geom_id2name(i) or ''} {names.body_id2name(model.geom_bodyid[i]) or ''}"
        colour = next((rgba for word, rgba in COLOURS.items() if word in name), None)
        model.geom_matid[i] = -1
        if colour is None:
            model.geom_group[i] = HIDDEN_GROUP
        else:
            model.geom_rgba[i] = colour
    model.vis.quality.offsamples = 0
    model.vis.global_.fovy = float(np.degrees(2 * np.arctan((BOX[2, 1] - BOX[2, 0]) / 2 / DISTANCE)))
    model.light_active[:] = 0
    for part, brightness in (("ambient", 1.0), ("diffuse", 0.0), ("specular", 0.0)):
        getattr(model.vis.headlight, part)[:] = brightness


def _camera(mujoco: Any, azimuth: float) -> Any:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = BOX.mean(1)
    camera.azimuth, camera.elevation, camera.distance = azimuth, ELEVATION, DISTANCE
    return camera


def cube_rows(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row of the cube's middle in each view [..., 2], in pixels from the view's top, and how much is seen [..., 2].

    frames: [..., SIZE, SIZE, 3] uint8. The cube is what is orange.
    """
    pixels = np.asarray(frames).astype(np.float32)
    red, green, blue = (pixels[..., c] for c in range(3))
    weight = np.clip((red - blue - 40) / 80, 0, 1) * (red > green * 1.2)
    weight = weight.reshape(*weight.shape[:-2], 2, SIZE // 2, SIZE)
    mass = weight.sum((-1, -2))
    rows = (weight.sum(-1) * (np.arange(SIZE // 2) + 0.5)).sum(-1) / (mass + 1e-6)
    return rows, mass
