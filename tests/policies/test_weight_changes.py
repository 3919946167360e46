"""Laws of the code of changes: it is exact for all bits, small where little changes, and a wrong one is refused."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmpo_ray.policies.weight_changes import BITMAP, HEADER, LEVEL, decode_changes, encode_changes, index_dtype

DTYPES = [np.uint8, np.uint16, np.uint32, np.uint64]


def assert_exact(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Decode what was encoded; returns the code."""
    code = encode_changes(old, new)
    indices, steps = decode_changes(code, new.size, new.itemsize)
    assert np.array_equal(indices, np.flatnonzero(old != new)) and steps.dtype == new.dtype
    result = old.copy()
    result[indices] += steps
    assert np.array_equal(result, new)
    return code


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 3000), st.sampled_from([0.0, 0.001, 0.05, 0.3, 0.9, 1.0]))
def test_any_change_of_any_bits_comes_back(data, dtype, count, share):
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    largest = data.draw(st.sampled_from([1, 2, 7, 300, np.iinfo(dtype).max]))
    old = generator.integers(0, np.iinfo(dtype).max, count, dtype, endpoint=True)
    size = generator.integers(1, min(largest, np.iinfo(dtype).max), count, dtype, endpoint=True)
    step = np.where(generator.random(count) < 0.5, size, np.zeros(1, dtype) - size)
    assert_exact(old, np.where(generator.random(count) < share, old + step, old))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_range_come_back(dtype):
    top = np.iinfo(dtype).max
    half = top // 2 + 1  # the one step that is its own opposite
    bits = np.array([0, 1, half - 1, half, half + 1, top - 1, top], dtype)
    old, new = (each.ravel() for each in np.meshgrid(bits, bits))
    assert_exact(old, new)


@pytest.mark.parametrize("places", [[0], [10**7 - 1], [0, 10**7 - 1], [3, 4, 5], range(5 * 10**6, 5 * 10**6 + 100)])
def test_huge_gaps_cost_a_few_bytes_a_change(places):
    old = np.zeros(10**7, np.uint16)
    new = old.copy()
    new[list(places)] = 1
    assert len(assert_exact(old, new)) < 50 + 5 * len(places)


def test_nothing_changed_is_a_header():
    old = np.arange(1000, dtype=np.uint16)
    assert len(assert_exact(old, old.copy())) == HEADER.size


@pytest.mark.parametrize("share", [0.002, 0.01, 0.03, 0.1, 0.25, 0.5, 0.9])
def test_places_are_near_what_no_code_goes_below(share):
    """n H(p) bits for places that are independent, n for a bitmap, and one for the sign of each step."""
    count = 200_000
    generator = np.random.default_rng(0)
    changed = generator.random(count) < share
    step = np.where(generator.random(count) < 0.5, 1, 0xFFFF).astype(np.uint16)
    old = generator.integers(0, 2**16, count, np.uint16)
    code = assert_exact(old, np.where(changed, old + step, old))
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
    places = min(1.25 * entropy, 1) if share < 0.5 else 1
    assert 8 * len(code) < count * places + changed.sum() + 400


def test_a_few_far_steps_cost_the_near_ones_a_bit_each_at_most():
    generator = np.random.default_rng(0)
    old = generator.integers(0, 2**16, 100_000, np.uint16)
    near = (old + 1).astype(np.uint16)
    mixed = np.where(generator.random(len(old)) < 0.001, old ^ 0x8000, near).astype(np.uint16)
    assert len(assert_exact(old, mixed)) < len(assert_exact(old, near)) + len(old) / 8 + 3 * 150


def test_indices_are_as_narrow_as_the_tensor_allows():
    assert index_dtype(2**32) is np.uint32 and index_dtype(2**32 + 1) is np.uint64


# -- what is refused ---------------------------------------------------------------------------------------------------

OLD = np.zeros(400, np.uint16)
SPARSE, DENSE = OLD.copy(), OLD.copy()
SPARSE[[3, 80, 81, 399]], DENSE[:] = (1, 2, 900, 1), np.arange(1, 401)


def patched(code: np.ndarray, offset: int, new: bytes) -> np.ndarray:
    raw = bytearray(code.tobytes())
    raw[offset : offset + len(new)] = new
    return np.frombuffer(bytes(raw), np.uint8)


def damages(code: np.ndarray) -> dict[str, np.ndarray]:
    num_levels = code[3]
    places = HEADER.size + num_levels * LEVEL.size
    huge = struct.pack("<Q", 2**62)
    return {
        "nothing": code[:0],
        "half a header": code[:10],
        "cut short": code[:-1],
        "too long": np.append(code, np.uint8(0)),
        "wide": code.astype(np.uint16),
        "two dimensions": code[None],
        "another format": patched(code, 0, b"\2"),
        "another width": patched(code, 1, b"\4"),
        "impossible low bits": patched(code, 2, b"\x80"),
        "many low bits": patched(code, 2, b"\x3f"),
        "no levels": patched(code, 3, b"\0"),
        "many levels": patched(code, 3, b"\xff"),
        "another tensor": patched(code, 4, struct.pack("<Q", 401)),
        "a huge tensor": patched(code, 4, huge),
        "more changes than elements": patched(code, 12, struct.pack("<Q", 401)),
        "a huge number of changes": patched(code, 12, huge),
        "no changes": patched(code, 12, bytes(8)),
        "a level without bits": patched(code, HEADER.size, b"\0"),
        "a level too wide": patched(code, HEADER.size, b"\x11"),
        "a level too long": patched(code, HEADER.size + 1, huge),
        "other places": patched(code, places, bytes([code[places] ^ 0xFF])),
    }


@pytest.mark.parametrize("name", damages(encode_changes(OLD, SPARSE)))
@pytest.mark.parametrize("new", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_a_damaged_code_is_refused(name, new):
    code = encode_changes(OLD, new)
    assert (code[2] == BITMAP) == (new is DENSE)
    with pytest.raises(ValueError, match=r"changes|change, it has"):
        decode_changes(damages(code)[name], 400, 2)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from([SPARSE, DENSE]), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6))
def test_whatever_arrives_is_refused_or_ascends_within_the_tensor(new, flips):
    code = encode_changes(OLD, new).copy()
    for place, byte in flips:
        code[place % len(code)] = byte
    try:
        indices, steps = decode_changes(code, 400, 2)
    except ValueError:
        return
    assert len(indices) == len(steps) <= 400 and (np.diff(indices.astype(np.int64)) > 0).all()
    assert not len(indices) or indices[-1] < 400


def test_places_that_repeat_or_lie_beyond_the_end_are_refused():
    code = encode_changes(OLD, SPARSE)
    low, num_levels = int(code[2]), int(code[3])
    start = HEADER.size + num_levels * LEVEL.size
    unary = -(-((399 >> low) + 4) // 8)
    planes = code[start + unary : start + unary + low]
    for value in (0x00, 0xFF):  # all low bits alike: 80 and 81 become one place, or the last lies beyond the end
        damaged = code.copy()
        damaged[start + unary : start + unary + len(planes)] = value
        with pytest.raises(ValueError, match="ascend and be below 400"):
            decode_changes(damaged, 400, 2)
