"""World-model-based policy optimization of robot policies. `wmpo_ray.load` opens a run in Python, see `wmpo_ray/api.py`.

Importing this package imports nothing else: its names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmpo_ray.api import Clip, Run, Score, load

__all__ = ["Clip", "Run", "Score", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("wmpo_ray.api"), name)
