"""The elements of a tensor that an update changed, as few bytes: their places, and how far their bits moved.

A learning rate of 5e-6 moves one bfloat16 weight in ten, and most of those by one unit in the last place.

*Places* are a bitmap, or the Elias-Fano code of ascending integers: the low bits of each as they are, the high ones as
the gaps between them in unary (Elias 1974, Efficient storage and retrieval by content and address of static files; Fano
1971), whichever is smaller. *Steps* are differences of the bits as unsigned integers, modulo 2^width, so that nothing is
rounded and no NaN is lost. They are folded (-1, 1, -2, 2 ... become 0, 1, 2, 3 ...) and written in levels: a level
has a few bits for each value, all ones for a value that does not fit and follows in the next level. All bits stand in
planes, the lowest first, so that numpy packs eight values at a time.

    header   "<BBBBQQ": format, bytes of an element, low bits of a place (255: bitmap), levels, elements, changes
    levels   "<BQ" each: bits of a value, values
    places   bitmap [elements], or gaps in unary [((elements - 1) >> low) + changes] and planes of low bits [changes]
    steps    planes [values] of each level
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

FORMAT = 1
BITMAP = 255  # in the place of the number of low bits
HEADER, LEVEL = struct.Struct("<BBBBQQ"), struct.Struct("<BQ")
NUM_SAMPLED = 2**14  # values that the widths of the levels are chosen by


class Changes(NamedTuple):
    indices: np.ndarray  # [n] uint32 (uint64 beyond 2^32 elements), flat, ascending
    steps: np.ndarray  # [n] unsigned, to be added to the bits, modulo 2^width


class _Header(NamedTuple):
    itemsize: int
    low: int
    num_elements: int
    num_changes: int
    levels: list[tuple[int, int]]  # (bits, values) of each

    @property
    def sections(self) -> Iterator[int]:
        """Bytes of each section that follows, in order."""
        if self.num_changes == 0:
            return
        if self.low == BITMAP:
            yield _num_bytes(self.num_elements)
        else:
            yield _num_bytes(_unary_length(self.num_elements, self.num_changes, self.low))
            yield self.low * _num_bytes(self.num_changes)
        for width, count in self.levels:
            yield width * _num_bytes(count)


# -- encoding ----------------------------------------------------------------------------------------------------------


def encode_changes(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The code [bytes] uint8 of what differs between the bits [n] of two versions, unsigned and of one dtype."""
    places = np.flatnonzero(old != new)
    count, bits = len(places), 8 * new.itemsize
    if count == 0:
        return np.frombuffer(HEADER.pack(FORMAT, new.itemsize, 0, 0, new.size, 0), np.uint8)
    low = _choose_low(new.size, count)
    body = [_bitmap(places, new.size)] if low == BITMAP else _elias_fano(places, new.size, low)
    steps = new[places] - old[places]
    values = _fold(steps, bits)
    levels = []
    for width in (*_choose_widths(values), 0):  # 0: the last one, in which everything fits
        escape = (1 << width) - 1
        width = width or max(1, int(values.max()).bit_length())
        levels.append(LEVEL.pack(width, len(values)))
        body += _planes(np.minimum(values, escape) if escape else values, width)
        if escape:
            values = values[values >= escape]
        if not len(values):
            break
    head = HEADER.pack(FORMAT, new.itemsize, low, len(levels), new.size, count) + b"".join(levels)
    return np.concatenate([np.frombuffer(head, np.uint8), *body])


def _choose_low(num_elements: int, count: int) -> int:
    sizes = {low: low * count + _unary_length(num_elements, count, low) for low in range(64)}
    low = min(sizes, key=lambda low: sizes[low])
    return low if sizes[low] < num_elements else BITMAP


def _unary_length(num_elements: int, count: int, low: int) -> int:
    return ((num_elements - 1) >> low) + count


def _bitmap(places: np.ndarray, num_elements: int) -> np.ndarray:
    marks = np.zeros(num_elements, np.uint8)
    marks[places] = 1
    return np.packbits(marks)


def _elias_fano(places: np.ndarray, num_elements: int, low: int) -> list[np.ndarray]:
    ends = (places >> low) + np.arange(len(places))
    rest = (places & ((1 << low) - 1)).astype(_unsigned(low))
    return [_bitmap(ends, _unary_length(num_elements, len(places), low)), *_planes(rest, low)]


def _fold(steps: np.ndarray, bits: int) -> np.ndarray:
    """-1, 1, -2, 2 ... as 0, 1, 2, 3 ...; no step is 0."""
    sign = steps >> steps.dtype.type(bits - 1)
    return ((steps << steps.dtype.type(1)) ^ (-sign.view(f"i{steps.itemsize}")).view(steps.dtype)) - steps.dtype.type(1)


def _choose_widths(values: np.ndarray) -> list[int]:
    """Bits of a value in each level but the last: the cheapest chain of levels, by a sample."""
    sample = np.sort(values[:: max(1, len(values) // NUM_SAMPLED)])
    scale, most = len(values) / len(sample), int(values.max()).bit_length()
    left = [float(len(values))]  # values that do not fit in so many bits
    for width in range(1, most):
        left.append(scale * (len(sample) - np.searchsorted(sample, np.uint64((1 << width) - 1))))
    best: list[tuple[float, list[int]]] = [(0.0, [])]  # cost in bits of the levels up to a width, and these
    for width in range(1, max(most, 1) + 1):
        best.append(
            min(
                (cost + width * left[narrower] + 8 * LEVEL.size, [*chain, width])
                for narrower, (cost, chain) in enumerate(best)
            )
        )
    return best[-1][1][:-1]


def _planes(values: np.ndarray, width: int) -> list[np.ndarray]:
    narrow = values.astype(_unsigned(width), copy=False)
    return [np.packbits(narrow & narrow.dtype.type(1 << bit) != 0) for bit in range(width)]


# -- decoding ----------------------------------------------------------------------------------------------------------


def decode_changes(code: np.ndarray, num_elements: int, itemsize: int) -> Changes:
    """The changes behind a code [bytes] for a tensor with so many elements of so many bytes.

    Raises ValueError where it is none; memory in proportion to the tensor is taken only once all sizes are known to fit.
    """
    header, rest = _read_header(code, num_elements, itemsize)
    if header.num_changes == 0:
        return Changes(np.zeros(0, index_dtype(num_elements)), np.zeros(0, f"u{itemsize}"))
    bounds = np.cumsum([0, *header.sections])
    sections = [rest[start:end] for start, end in pairwise(bounds)]
    if header.low == BITMAP:
        places = np.flatnonzero(np.unpackbits(sections.pop(0), count=num_elements).view(bool))
        _expect(len(places), header.num_changes, "places")
    else:
        places = _from_elias_fano(sections.pop(0), sections.pop(0), header)
    return Changes(places.astype(index_dtype(num_elements)), _unfold(_read_levels(sections, header), 8 * itemsize))


def index_dtype(num_elements: int) -> type[np.unsignedinteger]:
    """The narrowest dtype that holds every flat index."""
    return np.uint32 if num_elements <= 2**32 else np.uint64


def _read_header(code: np.ndarray, num_elements: int, itemsize: int) -> tuple[_Header, np.ndarray]:
    if code.ndim != 1 or code.dtype != np.uint8 or len(code) < HEADER.size:
        raise ValueError(f"{code.dtype} {code.shape} are no changes: they begin with {HEADER.size} bytes")
    number, size, low, num_levels, elements, changes = HEADER.unpack(code[: HEADER.size].tobytes())
    if number != FORMAT:
        raise ValueError(f"its changes have format {number} and this program reads {FORMAT}")
    if (size, elements) != (itemsize, num_elements) or changes > elements:
        raise ValueError(
            f"{changes} of {elements} elements of {size} bytes change, it has {num_elements} of {itemsize}"
        )
    end = HEADER.size + num_levels * LEVEL.size
    if len(code) < end or (low > 63 and low != BITMAP):
        raise ValueError(f"its changes are damaged: {num_levels} levels, {low} low bits, {len(code)} bytes")
    levels = list(LEVEL.iter_unpack(code[HEADER.size : end].tobytes()))
    counts = [changes, *(count for _, count in levels)]
    falls = all(before >= after > 0 for before, after in pairwise(counts))
    if counts[:2] not in ([changes, changes], [0]) or not falls or any(not 0 < b <= 8 * itemsize for b, _ in levels):
        raise ValueError(f"its changes are damaged: levels {levels} for {changes} changes")
    header = _Header(size, low, elements, changes, levels)
    _expect(len(code) - end, sum(header.sections), "bytes")
    return header, code[end:]


def _from_elias_fano(unary: np.ndarray, rest: np.ndarray, header: _Header) -> np.ndarray:
    length = _unary_length(header.num_elements, header.num_changes, header.low)
    ends = np.flatnonzero(np.unpackbits(unary, count=length).view(bool))
    _expect(len(ends), header.num_changes, "places")
    places = (ends - np.arange(len(ends))) << header.low
    if header.low:
        places |= _from_planes(rest, header.low, len(ends)).astype(np.int64)
    # Ascending: no element is changed twice, and only the last place can be too large.
    if places[-1] >= header.num_elements or (places[1:] <= places[:-1]).any():
        raise ValueError(f"its places must ascend and be below {header.num_elements}")
    return places


def _read_levels(sections: list[np.ndarray], header: _Header) -> np.ndarray:
    """The folded steps, from the last level to the first."""
    values: np.ndarray | None = None
    for (width, count), section in reversed(list(zip(header.levels, sections, strict=True))):
        codes = _from_planes(section, width, count).astype(f"u{header.itemsize}", copy=False)
        if values is not None:
            escaped = np.flatnonzero(codes == (1 << width) - 1)
            _expect(len(escaped), len(values), "steps")
            codes[escaped] = values
        values = codes
    assert values is not None
    return values


def _from_planes(section: np.ndarray, width: int, count: int) -> np.ndarray:
    values = np.zeros(count, _unsigned(width))
    for bit, plane in enumerate(section.reshape(width, -1)):
        values |= np.unpackbits(plane, count=count).astype(values.dtype, copy=False) << values.dtype.type(bit)
    return values


def _unfold(values: np.ndarray, bits: int) -> np.ndarray:
    one = values.dtype.type(1)
    folded = values + one
    return (folded >> one) ^ (-(folded & one).view(f"i{values.itemsize}")).view(values.dtype)


def _unsigned(width: int) -> np.dtype:
    """The narrowest unsigned dtype with so many bits."""
    return np.dtype(f"u{next(size for size in (1, 2, 4, 8) if 8 * size >= width)}")


def _num_bytes(num_bits: int) -> int:
    return -(-num_bits // 8)


def _expect(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise ValueError(f"its changes are damaged: {found} {what} for {wanted}")
