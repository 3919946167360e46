"""Saved scenes: the numbers that a scene consists of, one after the other as float64, after a header that may be empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from wmpo_ray.core.observations import StartState

NUMBER_BYTES = 8


def check_starts_are_scenes(starts: Sequence[StartState]) -> None:
    """Raises ValueError for a start that has neither a seed nor a saved scene."""
    for i, start in enumerate(starts):
        if start.seed is None and start.saved_state is None:
            raise ValueError(
                f"start {i} has no scene (seed and saved_state are None), so that it cannot be rebuilt; start from "
                'recorded episodes or set world_model.kind = "diffusion"'
            )


def pack_scene(parts: Mapping[str, np.ndarray], header: bytes = b"") -> bytes:
    """For `StartState.saved_state`. parts: numbers of any shape, in the order in which they are stored."""
    return header + b"".join(np.asarray(values, np.float64).tobytes() for values in parts.values())


def unpack_scene(i: int, saved: bytes, like: Mapping[str, np.ndarray], header: bytes = b"") -> dict[str, np.ndarray]:
    """What `pack_scene` packed of start i, float64 in the names and shapes of `like`.

    Raises ValueError for another number of bytes; who has a header compares it.
    """
    sizes = {name: np.size(values) for name, values in like.items()}
    expected = len(header) + NUMBER_BYTES * sum(sizes.values())
    if len(saved) != expected:
        raise ValueError(f"start {i}: its saved_state has {len(saved)} bytes, a scene has {expected}")
    numbers = np.split(np.frombuffer(saved, np.float64, offset=len(header)), np.cumsum(list(sizes.values()))[:-1])
    return {name: part.reshape(np.shape(like[name])).copy() for name, part in zip(sizes, numbers, strict=True)}
