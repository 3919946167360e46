"""Messages of openpi's clients: msgpack whose arrays are maps of bytes, dtype and shape, read under bounds.

A client sends one map for each question. Its keys are the robot's own (`observation/image`, `images`, `state`, ...), so
what a value is decides what becomes of it:

    [H, W, 3] or [3, H, W] uint8      an image, of the camera that the key names; the first one is the main one
    a number, or numbers on one axis    a part of the state, in the order of the keys
    `prompt`                          the instruction

Maps within the map are read alike. Nothing is pickled: an array's dtype must be one of plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
import numpy as np

from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.refusals import bad
from wmpo_client.sent_images import MAX_CAMERAS, MAX_NAME, encode_image
from wmpo_ray.core.section import shown

PROMPT = "prompt"
DTYPES = ("|u1", "|i1", "|b1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
MAX_AXES = 4
# A few bytes can announce millions of entries: the product of these bounds what all of a message's objects can take.
MAX_ENTRIES, MAX_CONTAINERS, MAX_TEXT_BYTES = 1024, 256, 4096
ARRAY, NUMBER = b"__ndarray__", b"__npgeneric__"


def pack(message: Mapping[str, Any]) -> bytes:
    """A map of plain values and numpy arrays, as openpi's clients read it."""
    return msgpack.packb(message, default=_packed)


def _packed(value: Any) -> Any:
    assert isinstance(value, np.ndarray) and value.dtype.str in DTYPES, f"{type(value).__name__} is not sent"
    return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def unpack(data: bytes) -> dict[Any, Any]:
    """The map of a message. Raises Refusal for anything else, before memory is taken for what it announces."""
    containers = 0

    def counted(value: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise bad(f"a message of more than {MAX_CONTAINERS} lists, maps and arrays")
        if isinstance(value, dict):
            return _array(value) if ARRAY in value else _number(value) if NUMBER in value else value
        return value

    try:
        found = msgpack.unpackb(
            data,
            object_hook=counted,
            list_hook=counted,
            strict_map_key=False,  # the keys of an array are bytes
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=len(data),
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a list as a key
        raise bad(f"no message of openpi's protocol: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise bad(f"a message that is a {type(found).__name__}; a map is asked for")
    return found


def _array(value: dict[Any, Any]) -> np.ndarray:
    """An array that is a view of the message's bytes. Raises Refusal."""
    data, dtype, shape = (value.get(key) for key in (b"data", b"dtype", b"shape"))
    if dtype not in DTYPES or not isinstance(data, bytes):
        raise bad(f"an array of {shown(str(dtype))}; known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise bad(f"an array without a shape of up to {MAX_AXES} whole numbers")
    kind = np.dtype(dtype)
    if math.prod(shape) * kind.itemsize != len(data):
        raise bad(f"an array of shape {shape} and {dtype} does not have {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape)


def _number(value: dict[Any, Any]) -> float:
    number = value.get(b"data")
    if not isinstance(number, int | float):
        raise bad("a number of numpy that is none")
    return float(number)


def observation_of(message: Mapping[Any, Any], instructions: tuple[str, ...]) -> Any:
    """An Observation of a client's message. instructions: that the policy knows; where it knows one, none has to be sent.

    Raises Refusal for a message without an image or an instruction, and for values that are none of those above.
    """
    images, state, prompt = list[Any](), list[float](), instructions[0] if len(instructions) == 1 else None
    for name, value in _leaves(message, ""):
        if name == PROMPT and isinstance(value, str):
            prompt = value
        elif isinstance(value, np.ndarray) and value.ndim > 1:
            if len(images) == MAX_CAMERAS:
                raise bad(f"more than {MAX_CAMERAS} images")
            images.append(encode_image(name[:MAX_NAME], _frame(name, value)))
        elif not isinstance(value, str):  # words beside the instruction are for other policies
            state.extend(_numbers(name, value))
    if not images:
        raise bad("no image: one [H, W, 3] uint8 at least is asked for")
    if prompt is None:
        raise bad(f"no {PROMPT}: the policy knows more than one instruction")
    return pb.Observation(images=images, instruction=prompt, state=state)


def _leaves(message: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in message.items():
        name = f"{above}{key}"
        if not isinstance(key, str) or not key or len(name) > MAX_TEXT_BYTES:
            raise bad("a key that is no short text")
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}/")
        else:
            yield name, value


def _frame(name: str, value: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8, of an image whose colours come first or last."""
    if value.ndim == 3 and value.shape[0] == 3 and value.shape[2] != 3:
        value = value.transpose(1, 2, 0)
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        raise bad(f"{shown(name)} is {value.dtype} {list(value.shape)}; an image is [H, W, 3] or [3, H, W] uint8")
    return value


def _numbers(name: str, value: Any) -> list[float]:
    values = value if isinstance(value, list | np.ndarray) else [value]
    if len(values) > MAX_ENTRIES or not all(isinstance(each, int | float | np.number | np.bool_) for each in values):
        raise bad(f"{shown(name)} is neither an image, nor a number, nor up to {MAX_ENTRIES} numbers on one axis")
    try:
        return [float(each) for each in values]
    except OverflowError:
        raise bad(f"{shown(name)} is too large") from None
