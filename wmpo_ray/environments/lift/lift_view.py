"""The pictures of the small Lift: fingers and cube from the front above, from the side below."""

from __future__ import annotations

import weakref

import numpy as np

from wmpo_ray.environments.lift.lift_settings import BOX, SIZE
from wmpo_ray.environments.robosuite.simulator import Simulator

SUPERSAMPLING = 4  # pixels that are drawn for one, in each direction
DISTANCE = 3.0  # metres of the cameras; from that far perspective hardly shows
AZIMUTHS = (180.0, 90.0)  # degrees: looking along -x, y to the right; looking along y, x to the right
ELEVATION = -2.0  # degrees, so that the table is seen as a line
HIDDEN_GROUP = 5
CUBE, FINGERS, TABLE = (1.0, 0.5, 0.1, 1.0), (0.2, 0.9, 0.4, 1.0), (0.25, 0.27, 0.30, 1.0)


class LiftView:
    """Draws the scene that its simulator is in."""

    def __init__(self, simulator: Simulator):
        self.simulator, self.mujoco = simulator, simulator.mujoco
        self._paint()
        self._open()

    def frame(self) -> np.ndarray:
        """[SIZE, SIZE, 3] uint8."""
        mujoco, model, data = self.mujoco, self.simulator.model, self.simulator.data
        self.context_gl.make_current()
        height, width = SIZE // 2 * SUPERSAMPLING, SIZE * SUPERSAMPLING
        rectangle, views = mujoco.MjrRect(0, 0, width, height), []
        for camera in self.cameras:
            mujoco.mjv_updateScene(model, data, self.options, None, camera, int(mujoco.mjtCatBit.mjCAT_ALL), self.scene)
            mujoco.mjr_render(rectangle, self.scene, self.context)
            pixels = np.empty((height, width, 3), np.uint8)
            mujoco.mjr_readPixels(pixels, None, rectangle, self.context)
            views.append(pixels[::-1])
        drawn = np.concatenate(views).reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING, 3)
        return (drawn.sum((1, 3), dtype=np.int64) // SUPERSAMPLING**2).astype(np.uint8)

    def _paint(self) -> None:
        """Hide the arm, the hand and the room; one colour for each thing that is left."""
        model, names = self.simulator.model, self.simulator.env.sim.model
        for i in range(model.ngeom):
            if model.geom_group[i] != 1:  # it is drawn, not collided with
                continue
            name = f"{names.geom_id2name(i) or ''} {names.body_id2name(model.geom_bodyid[i]) or ''}"
            colour = next(
                (c for word, c in (("finger", FINGERS), ("cube", CUBE), ("table", TABLE)) if word in name), None
            )
            model.geom_matid[i] = -1
            if colour is None:
                model.geom_group[i] = HIDDEN_GROUP
            else:
                model.geom_rgba[i] = colour

    def _open(self) -> None:
        mujoco, model = self.mujoco, self.simulator.model
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        # Every thing has one colour wherever it is.
        model.light_active[:] = 0
        for part, brightness in (("ambient", 1.0), ("diffuse", 0.0), ("specular", 0.0)):
            getattr(model.vis.headlight, part)[:] = brightness
        model.vis.global_.offwidth, model.vis.global_.offheight = SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING
        height = BOX[2, 1] - BOX[2, 0]
        model.vis.global_.fovy = float(np.degrees(2 * np.arctan(height / 2 / DISTANCE)))
        self.context_gl = mujoco.GLContext(SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING)
        self.context_gl.make_current()
        weakref.finalize(self, self.context_gl.free)  # at the end of the process its libraries are gone first
        self.scene = mujoco.MjvScene(model, maxgeom=200)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE"):
            self.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self.options = mujoco.MjvOption()
        self.options.geomgroup[:] = 0
        self.options.geomgroup[1] = 1
        self.options.sitegroup[:] = 0
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        self.cameras = [self._camera(azimuth) for azimuth in AZIMUTHS]

    def _camera(self, azimuth: float):
        camera = self.mujoco.MjvCamera()
        camera.type = self.mujoco.mjtCamera.mjCAMERA_FREE
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
