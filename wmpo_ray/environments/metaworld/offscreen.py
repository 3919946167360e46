"""Pictures of MuJoCo without a screen.

Software rendering of the arm's meshes costs 17 ms a picture with MuJoCo's smoothing of edges, of 64 or of 240 pixels, and
5 ms without. So pictures are drawn larger than frames, without smoothing, and reduced by area.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import importlib
import os
import weakref
from typing import Any

import numpy as np

CHOICE = "MUJOCO_GL"  # what MuJoCo draws with; it reads it once, when it is imported
MIN_PIXELS, MIN_SAMPLES = 128, 2  # of a picture, and of it along each side of a pixel of the frame


def choose_backend() -> None:
    """Choose what MuJoCo draws with, before it is imported; what the user chose stays.

    Without a screen it is EGL where a device can draw with it, which may be a GPU, and else OSMesa.
    """
    if os.environ.get(CHOICE) or os.environ.get("DISPLAY"):
        return
    if _num_egl_devices():
        os.environ[CHOICE] = "egl"
    elif ctypes.util.find_library("OSMesa"):
        os.environ[CHOICE] = "osmesa"


def _num_egl_devices() -> int:
    try:
        library = ctypes.CDLL(ctypes.util.find_library("EGL") or "libEGL.so.1")
        library.eglGetProcAddress.restype = ctypes.c_void_p
        address = library.eglGetProcAddress(b"eglQueryDevicesEXT")
    except (OSError, AttributeError):
        return 0
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0


def picture_size(image_size: int) -> int:
    """Height and width of the picture that a frame of `image_size` is reduced from: a multiple of it."""
    return image_size * max(MIN_SAMPLES, -(-MIN_PIXELS // image_size))


class OffscreenRenderer:
    """Draws the scenes of one model from one camera; shadows and reflections are left out, which cost half the time."""

    def __init__(self, model: Any, camera: str, size: int):
        import mujoco

        self._mujoco, self._model = mujoco, model
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._gl = gl = _context(size)
        gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene, self._options = mujoco.MjvScene(model, maxgeom=1000), mujoco.MjvOption()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(camera).id
        self._area = mujoco.MjrRect(0, 0, size, size)
        self.close = weakref.finalize(self, _free, gl, self._context)
        atexit.register(self.close)  # before MuJoCo's own, which takes EGL away

    def draw(self, data: Any) -> np.ndarray:
        """[size, size, 3] uint8, upright."""
        mujoco, every = self._mujoco, self._mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, every, self._scene)
        self._gl.make_current()
        mujoco.mjr_render(self._area, self._scene, self._context)
        picture = np.empty((self._area.height, self._area.width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._area, self._context)  # from the lowest row to the highest
        up = data.cam_xmat[self._camera.fixedcamid].reshape(3, 3)[2, 1]
        # Meta-World's corner cameras hang upside down: what they see is turned by half a turn.
        return np.ascontiguousarray(picture[:, ::-1] if up < -0.5 else picture[::-1])


def _context(size: int) -> Any:
    """OpenGL by the chosen backend, also where MuJoCo was imported before it was chosen."""
    chosen = os.environ.get(CHOICE, "").lower()
    module = f"mujoco.{chosen}" if chosen in ("egl", "osmesa") else "mujoco"
    return importlib.import_module(module).GLContext(size, size)


def _free(gl: Any, context: Any) -> None:
    gl.make_current()
    context.free()
    gl.free()
