"""OpenGL without a screen for MuJoCo: which of its ways works here. MuJoCo and robosuite read the choice when imported."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from wmpo_ray.core.errors import ConfigError, first_line
from wmpo_ray.core.section import shown

CHOICE = "MUJOCO_GL"
BACKENDS = ("egl", "osmesa")  # the first one can use a GPU
MODULES = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa", "glfw": "mujoco.glfw", "glx": "mujoco.glfw"}
PACKAGES = "libegl1 and libgl1-mesa-dri, or libosmesa6 (names of Debian's packages)"
PROBE_TIMEOUT_S = 60
_PROBE = """
from mujoco.{backend} import GLContext
context = GLContext(16, 16)
context.make_current()
from OpenGL import GL
print(GL.glGetString(GL.GL_RENDERER).decode())
"""


def choose_backend() -> str:
    """The backend of this process and of those that it starts, chosen before MuJoCo or robosuite is imported.

    The user's MUJOCO_GL wins. Raises ConfigError for one that does not exist, and where no backend works.
    """
    chosen = os.environ.get(CHOICE, "").strip().lower()
    if not chosen:
        chosen = os.environ[CHOICE] = _first_that_works()
    if chosen not in MODULES:
        raise ConfigError(
            f"{CHOICE}={shown(chosen)}: it must be one of {', '.join(MODULES)}; unset it to take what works"
        )
    return chosen


def make_context(size: int) -> Any:
    """An OpenGL context for pictures of size x size. Raises ConfigError where the chosen backend does not work.

    MuJoCo's own choice is not asked: it may have been imported, and have chosen, before ours.
    """
    backend = choose_backend()
    try:
        context = importlib.import_module(MODULES[backend]).GLContext(size, size)
        context.make_current()
    except (ImportError, AttributeError, RuntimeError, OSError) as error:  # a missing library is any of them
        raise ConfigError(
            f"{CHOICE}={shown(backend)} does not work here ({first_line(error)}); unset it, or install {PACKAGES}"
        ) from None
    return context


def _first_that_works() -> str:
    found = {}
    for backend in BACKENDS:
        found[backend] = probe(backend)
        if found[backend].works:
            return backend
    raise ConfigError(_nothing_works(found))


class Probed(NamedTuple):
    """What came of a backend."""

    works: bool
    detail: str  # the name of the renderer, or the reason why it does not work


@functools.cache
def probe(backend: str) -> Probed:
    """Try a backend in a process of its own: one that fails cannot be replaced by another in the same process."""
    environment = {**os.environ, CHOICE: backend, "PYOPENGL_PLATFORM": backend}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE.format(backend=backend)],
            check=False,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return Probed(False, f"no answer within {PROBE_TIMEOUT_S} s")
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return Probed(not done.returncode, lines[-1] if lines else f"exit code {done.returncode}")


def _nothing_works(found: Mapping[str, Probed]) -> str:
    reasons = ", ".join(f"{backend}: {result.detail}" for backend, result in found.items())
    return f"MuJoCo draws with OpenGL without a screen, and no way works here ({reasons}); install {PACKAGES}"
