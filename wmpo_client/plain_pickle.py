"""Reads the pickles of LeRobot's client, and nothing else that a pickle can be.

A pickle is a program. This reader runs it with an empty toolbox: the few classes that a message is made of are replaced by
stand-ins of our own, which keep values and do nothing, any other name is refused, and so is every operation that a message
does not need. Arrays are built from their bytes by checked shape and dtype, never by numpy's own hooks. Nothing of LeRobot,
torch or numpy is called on the way.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any, Literal

import numpy as np

from wmpo_client.refusals import bad

MAX_OPERATIONS = 20_000
DTYPES = ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
HELPERS = "lerobot.async_inference.helpers"
# Of protocol 3 and later, without persistent references, extensions, buffers from outside and old ways to build objects.
_WORDS = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE
    SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_DICT DICT SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD
"""
OPERATIONS = frozenset(_WORDS.split())


class Plain:
    """Stands for an object of LeRobot: its attributes, and nothing else."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise bad("an object whose state is no map of names")
        self.values = state


class _Dtype:
    def __init__(self, code: Any, *options: Any):
        if code not in DTYPES:
            raise bad("an array of other values than numbers")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|"):
            raise bad("a dtype that is none")


class _Array:
    """`value` is there once its state was read."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise bad("an array without a state")
        _, shape, dtype, is_fortran, data = state
        self.value = _values(data, dtype, shape, "F" if is_fortran else "C")


def _values(data: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    is_shape = isinstance(shape, tuple) and len(shape) <= 6 and all(type(n) is int and n >= 0 for n in shape)
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)) or not is_shape:
        raise bad("an array that is none")
    kind = np.dtype("<" + dtype.code)
    if math.prod(shape) * kind.itemsize != len(data):
        raise bad(f"an array of shape {list(shape)} does not have {len(data)} bytes")
    return np.frombuffer(bytes(data), kind).reshape(shape, order=order)


def _reconstruct(*arguments: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *axes: Any) -> _Array:
    if order not in ("C", "F"):
        raise bad("an array in an order that is none")
    made = _Array()
    made.value = _values(data, dtype, shape, order)
    return made


def _scalar(dtype: Any, data: Any) -> float:
    return _values(data, dtype, (), "C").item()


class _Name:
    """Stands for a class that is only named."""


def _known() -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {
        (HELPERS, "TimedObservation"): Plain,
        (HELPERS, "RemotePolicyConfig"): Plain,
        ("numpy", "ndarray"): _Name,
        ("numpy", "dtype"): _Dtype,
    }
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray", "_reconstruct"] = _reconstruct
        found[f"{core}.multiarray", "scalar"] = _scalar
        found[f"{core}.numeric", "_frombuffer"] = _from_buffer
    return found


class _Reader(pickle.Unpickler):
    KNOWN = _known()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise bad(f"a pickle that names {module[:60]}.{name[:60]}, which no message of LeRobot's client needs")
        return self.KNOWN[module, name]


def read_plain(data: bytes) -> dict[str, Any]:
    """The attributes of the object that a pickle holds, arrays as numpy's. Raises Refusal for any other pickle."""
    try:
        _check_operations(data)
        found = _Reader(io.BytesIO(data)).load()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise bad(f"no pickle of LeRobot's client: {type(error).__name__}") from None
    except (MemoryError, OverflowError, RecursionError) as error:
        raise bad(f"a pickle that asks for too much: {type(error).__name__}") from None
    if not isinstance(found, Plain) or not hasattr(found, "values"):
        raise bad("a pickle of something else than a message of LeRobot's client")
    return {name: _opened(value, 0) for name, value in found.values.items()}


def _check_operations(data: bytes) -> None:
    """Every length is that of bytes which are there, and every place of the memo a small one."""
    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        if operation.name not in OPERATIONS:
            raise bad(f"a pickle with the operation {operation.name}, which no message of LeRobot's client needs")
        is_far = operation.name.startswith(("LONG_BIN", "BINPUT", "BINGET")) and (argument or 0) > MAX_OPERATIONS
        if number >= MAX_OPERATIONS or is_far:
            raise bad(f"a pickle of more than {MAX_OPERATIONS} operations")


def _opened(value: Any, depth: int) -> Any:
    if depth > 8:
        raise bad("a message that is nested too deep")
    if isinstance(value, _Array):
        if not hasattr(value, "value"):
            raise bad("an array without values")
        return value.value
    if isinstance(value, dict):
        return {str(name): _opened(each, depth + 1) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_opened(each, depth + 1) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise bad(f"a message with a {type(value).__name__}")
