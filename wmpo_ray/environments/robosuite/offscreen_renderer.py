"""Pictures of robosuite's scenes, drawn without a screen and without what takes most of the time."""

from __future__ import annotations

import atexit
import functools
import weakref
from typing import Any

import numpy as np

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown
from wmpo_ray.environments.robosuite.headless import make_context
from wmpo_ray.environments.robosuite.robosuite_settings import RobosuiteConfig
from wmpo_ray.environments.robosuite.simulator import Simulator

MAX_GEOMS = 2000
VISUAL_GROUP = 1  # of geoms: robosuite's visual meshes; 0 holds the shapes that collide


class Canvas:
    """Draws the scene of a simulator from any camera. Settings of the picture in its model must be made before."""

    def __init__(
        self,
        simulator: Simulator,
        height: int,
        width: int,
        shadows: bool = False,
        reflections: bool = False,
        sky: bool = True,
    ):
        self.simulator, self.mujoco, self.height, self.width = simulator, simulator.mujoco, height, width
        mujoco, model = self.mujoco, simulator.model
        if not shadows:
            model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._gl = make_context(max(height, width))
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = reflections
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = sky
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = 0
        self._options.geomgroup[VISUAL_GROUP] = 1
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._area = mujoco.MjrRect(0, 0, width, height)
        self._finalizer = weakref.finalize(self, _free, self._context, self._gl)
        _OPEN.add(self)
        _close_before_opengl_ends()

    def draw(self, camera: Any) -> np.ndarray:
        """The scene as it was refreshed, [height, width, 3] uint8; `camera`: an MjvCamera."""
        mujoco = self.mujoco
        self._gl.make_current()  # another environment of this process may have drawn
        mujoco.mjv_updateScene(
            self.simulator.model,
            self.simulator.data,
            self._options,
            None,
            camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        mujoco.mjr_render(self._area, self._scene, self._context)
        image = np.empty((self.height, self.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._area, self._context)
        return np.ascontiguousarray(image[::-1])  # OpenGL begins at the bottom

    def close(self) -> None:
        """Give the memory of pictures and textures back; nothing can be drawn afterwards."""
        self._finalizer()


class OffscreenRenderer(Canvas):
    """Draws square pictures from a camera of the task. Raises ConfigError for one that the task does not have."""

    def __init__(self, simulator: Simulator, config: RobosuiteConfig):
        simulator.model.vis.quality.offsamples = config.multisampling
        self._camera = simulator.mujoco.MjvCamera()
        self._camera.type = simulator.mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = _find_camera(simulator.model, config.camera)
        super().__init__(simulator, config.image_size, config.image_size, config.shadows, config.reflections)

    def render(self) -> np.ndarray:
        """The scene as it was refreshed, [H, W, 3] uint8."""
        return self.draw(self._camera)


def _find_camera(model: Any, name: str) -> int:
    known = [model.camera(i).name for i in range(model.ncam)]
    if name not in known:
        raise ConfigError(f"environment.camera={shown(name)}: the cameras of this task are {', '.join(known)}")
    return known.index(name)


_OPEN: weakref.WeakSet[Canvas] = weakref.WeakSet()


@functools.cache
def _close_before_opengl_ends() -> None:
    """OpenGL ends at the exit of the process; what is registered later, as this is, comes first."""
    atexit.register(_close_all)


def _close_all() -> None:
    for renderer in list(_OPEN):
        renderer.close()


def _free(context: Any, gl: Any) -> None:
    gl.make_current()
    context.free()
    gl.free()
