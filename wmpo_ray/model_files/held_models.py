"""Models that a process has loaded before it knows which actor it will be.

A spare process holds them on the CPU. The actor that begins in it takes what it would have loaded, if the files and the
settings are the same; whatever it does not take is let go of.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from wmpo_ray.core.files import file_states

BLOCK_BYTES = 2**24


class _Held(NamedTuple):
    config: Any
    states: tuple[tuple[str, int, int], ...]  # of its files, before they were read
    model: Any


_held: dict[tuple[str, str], _Held] = {}  # by kind of model and folder


def hold(kind: str, config: Any, folder: str, load: Callable[[], Any]) -> None:
    """Keep what `load` makes of a folder under this configuration."""
    states = file_states(Path(folder))
    _held[kind, folder] = _Held(config, states, load())


def take(kind: str, config: Any, folder: str, device: Any) -> Any | None:
    """The model of a folder, for one who may change it; None where none is held, or not this one for this device."""
    held = _held.pop((kind, folder), None)
    if held is None or device.type != "cpu" or held.config != config or held.states != file_states(Path(folder)):
        return None
    return held.model


def let_go() -> None:
    _held.clear()


def read_files(folder: str) -> None:
    """Read all of a folder: its files are in the memory of the machine then, whoever reads them next."""
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(BLOCK_BYTES):
                    pass
