"""MuJoCo itself, imported when a scene is made."""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any


@functools.cache
def load_mujoco() -> Any:
    """The module. What it warns of, such as physics that diverge, is logged once each.

    Without that MuJoCo appends to a file MUJOCO_LOG.TXT in whatever folder the process works in.
    """
    mujoco = importlib.import_module("mujoco")
    seen = set[str]()

    def warn(text: str) -> None:
        kind = text.split(".")[0]  # the rest are times
        if kind not in seen:
            seen.add(kind)
            logging.getLogger(__name__).warning("MuJoCo: %s", text)

    mujoco.set_mju_user_warning(warn)
    return mujoco
