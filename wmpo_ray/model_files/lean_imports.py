"""Imports of transformers and diffusers without the half of scipy that they import and nothing here calls.

transformers takes one function of scipy.optimize for the losses of object detectors, diffusers imports scipy.stats for
a schedule of noise: a fifth of the processor time that the imports of an actor take. The functions work as ever; what
they need is imported when one is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import scipy

DEFERRED = ("scipy.optimize", "scipy.stats")


class _StandIn(ModuleType):
    """Gives functions that import the module when they are called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(self.__name__), name)(*args, **kwargs)

        return call


@contextmanager
def lean() -> Iterator[None]:
    """Inside the block `scipy.optimize` and `scipy.stats` are not imported; scipy finds them itself afterwards."""
    assert scipy
    stand_ins = {name: _StandIn(name) for name in DEFERRED if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
