"""Pictures of MuJoCo's scenes, drawn without a screen and without what takes most of the time."""

from __future__ import annotations

import atexit
import functools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from wmpo_ray.environments.simulators.mujoco_module import load_mujoco
from wmpo_ray.environments.simulators.opengl import make_context

MAX_GEOMS = 2000


class Canvas:
    """Draws the scenes of one model from any camera. Settings of the picture in the model must be made before.

    Without shadows and reflections a picture takes half of the time. `groups`: of the geoms that are drawn; None: MuJoCo's
    choice.
    """

    def __init__(
        self,
        model: Any,
        height: int,
        width: int,
        *,
        shadows: bool = False,
        reflections: bool = False,
        sky: bool = True,
        groups: Sequence[int] | None = None,
    ):
        self._mujoco = mujoco = load_mujoco()
        self._model, self.height, self.width = model, height, width
        if not shadows:
            model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._gl = make_context(max(height, width))
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        flags = mujoco.mjtRndFlag
        for flag, wanted in (
            (flags.mjRND_SHADOW, shadows),
            (flags.mjRND_REFLECTION, reflections),
            (flags.mjRND_SKYBOX, sky),
        ):
            self._scene.flags[flag] = wanted
        self._options = mujoco.MjvOption()
        if groups is not None:
            self._options.geomgroup[:] = 0
            self._options.geomgroup[list(groups)] = 1
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._area = mujoco.MjrRect(0, 0, width, height)
        self._finalizer = weakref.finalize(self, _free, self._context, self._gl)
        _OPEN.add(self)
        _close_before_opengl_ends()

    def draw(self, data: Any, camera: Any) -> np.ndarray:
        """The scene as it was refreshed, [height, width, 3] uint8; data, camera: an MjData and an MjvCamera."""
        mujoco, every = self._mujoco, self._mujoco.mjtCatBit.mjCAT_ALL.value
        self._gl.make_current()  # another environment of this process may have drawn
        mujoco.mjv_updateScene(self._model, data, self._options, None, camera, every, self._scene)
        mujoco.mjr_render(self._area, self._scene, self._context)
        image = np.empty((self.height, self.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._area, self._context)
        return np.ascontiguousarray(image[::-1])  # OpenGL begins at the bottom

    def close(self) -> None:
        """Give the memory of pictures and textures back; nothing can be drawn afterwards."""
        self._finalizer()


def fixed_camera(camera_id: int) -> Any:
    """A camera of the model itself."""
    mujoco = load_mujoco()
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera_id
    return camera


_OPEN: weakref.WeakSet[Canvas] = weakref.WeakSet()


@functools.cache
def _close_before_opengl_ends() -> None:
    """OpenGL ends at the exit of the process; what is registered later, as this is, comes first."""
    atexit.register(_close_all)


def _close_all() -> None:
    for canvas in list(_OPEN):
        canvas.close()


def _free(context: Any, gl: Any) -> None:
    gl.make_current()
    context.free()
    gl.free()
