"""Arrays on the wire, checked before memory is taken for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.refusals import bad

DTYPES = ("|u1", "|b1", "<i8", "<f4", "<f8")
MAX_AXES = 6


def to_array(values: np.ndarray) -> Any:
    """An Array. Raises ValueError for a dtype that is not sent."""
    if values.dtype.str not in DTYPES:
        raise ValueError(f"arrays of {values.dtype} are not sent; known are {', '.join(DTYPES)}")
    return pb.Array(dtype=values.dtype.str, shape=values.shape, data=np.ascontiguousarray(values).tobytes())


def from_array(array: Any, dtype: str, axes: int, name: str) -> np.ndarray:
    """The values, which must have this dtype and so many axes. Raises Refusal."""
    if array.dtype != dtype or dtype not in DTYPES or len(array.shape) != axes or axes > MAX_AXES:
        found = f"{array.dtype[:8]!r} with {len(array.shape)} axes"
        raise bad(f"{name} is an array of {found}; {dtype} with {axes} axes is asked for")
    kind = np.dtype(dtype)
    if math.prod(array.shape) * kind.itemsize != len(array.data):
        raise bad(f"{name} of shape {list(array.shape)} does not have {len(array.data)} bytes")
    if kind.kind == "b" and any(each not in (0, 1) for each in set(array.data)):
        raise bad(f"{name} holds bytes that are neither true nor false")
    return np.frombuffer(array.data, kind).reshape(tuple(array.shape))


def to_named(arrays: Mapping[str, np.ndarray]) -> Sequence[Any]:
    return [pb.NamedArray(name=name, array=to_array(values)) for name, values in arrays.items()]


def from_named(named: Any, dtype: str | None, axes: int | None) -> dict[str, np.ndarray]:
    """By name. dtype, axes: None where each array says its own."""
    found = {}
    for each in named:
        array = each.array
        kind = array.dtype if dtype is None else dtype
        found[each.name] = from_array(array, kind, len(array.shape) if axes is None else axes, each.name[:64])
    if len(found) != len(named):
        raise bad("two arrays of one name")
    return found


def to_actions(values: np.ndarray) -> Any:
    """Actions of a chunk [K, D] float32."""
    length, dims = values.shape
    return pb.Actions(length=length, dims=dims, values=np.ascontiguousarray(values, "<f4").tobytes())


def from_actions(actions: Any) -> np.ndarray:
    """[K, D] float32; a copy. Raises Refusal for bytes that are no such chunk, and for values that are not finite."""
    if 4 * actions.length * actions.dims != len(actions.values):
        raise bad(f"actions of {actions.length} x {actions.dims} do not have {len(actions.values)} bytes")
    values = np.frombuffer(actions.values, "<f4").reshape(actions.length, actions.dims).astype(np.float32)
    if not np.isfinite(values).all():
        raise bad("actions that are not finite")
    return values
