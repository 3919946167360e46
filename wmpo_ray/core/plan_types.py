"""Models without values: what would be built, of which sizes, and where those come from.

`build` and `inputs` of a blueprint are meant for the meta device, where the largest model takes no memory. Where a
configuration names a folder, its sizes are read from there; one that is not there yet is taken to be the published model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a configuration is read without torch
    from torch import Tensor, nn

Depths = Sequence[int]
ASSUMED = "published sizes"


class Blueprint(NamedTuple):
    """A network that can be built as deep as asked; `depths` are its own, one for each stack of layers."""

    source: str  # where the sizes come from
    depths: tuple[int, ...]
    build: Callable[[Depths], nn.Module]
    inputs: Callable[[int], dict[str, Tensor]]  # keyword arguments of `forward` for a batch of so many
    # Of a policy: bytes of a decision's record and log-probabilities; 0: of tokens, one for each dimension of an action.
    sample_bytes: int = 0


@dataclass(frozen=True)
class WorldBlueprint:
    """A world model: its network, what surrounds it, and the frames that it sees."""

    source: str
    depth: int
    build: Callable[[int], Any]  # depth -> DiffusionWorldModel
    frame_shape: tuple[int, int, int]
    action_dim: int
    halves: bool  # activations are bfloat16


def is_there(folder: str) -> bool:
    return bool(folder) and Path(folder).exists()
