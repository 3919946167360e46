"""What a trajectory file is: its header, its columns, and the checks of every size before memory is taken for it.

Parquet, one row per episode. `frames` are the episode's real frames [length+1, H, W, 3] uint8 as a Zstandard stream, whose
blocks of `block_frames` frames end at `frame_blocks` (bytes of int64, little-endian); `first_frame` are the bytes of
[H, W, 3], `actions` those of [T, D] little-endian float32 (also the actions that a batch went on with after the episode's
end: a world model imagines whole chunks), then `length`, `success`, `instruction`, `seed` and `failure.<name>` for each
failure that the environment reports, and `corrections`, the bytes of [T] bool, where an operator made steps. The shapes are in
the schema's metadata under `wmpo_ray`, as JSON. Any Parquet reader opens it; nothing is pickled.

`frames` is not compressed once more, and a page of it holds all of a row group: blocks are read from where they stand.

Formats 1 and 2 are read, and no longer written: format 2 has the bytes of the frames in place of the stream and no
`frame_blocks`; format 1 also pads every episode's frames to [T+1, H, W, 3] and has no `first_frame`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Episodes
from wmpo_ray.core.untrusted import regular_file
from wmpo_ray.data.column_metadata import open_all_columns
from wmpo_ray.data.frame_blocks import BLOCK_FRAMES, BLOCK_OVERHEAD, are_ends, decode_all, num_blocks

FORMAT = 3
METADATA_KEY = b"wmpo_ray"
MAX_INSTRUCTION_BYTES = 4096
MAX_DICTIONARY_BYTES = 4 * 2**30
FRAMES, FIRST_FRAME, FRAME_BLOCKS, CORRECTIONS = "frames", "first_frame", "frame_blocks", "corrections"

_Size = Annotated[int, Field(ge=1)]


class Header(BaseModel):
    """The shapes that all rows share."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    horizon: Annotated[int, Field(ge=0)]  # T
    height: _Size
    width: _Size
    channels: Literal[3]
    action_dims: _Size  # D
    frames_dtype: Literal["uint8"]
    actions_dtype: Literal["float32"]
    failures: list[str]
    has_corrections: bool = False
    block_frames: Annotated[int, Field(ge=0, le=2**20)] = 0  # frames in a block; 0: of format 1 or 2, without blocks

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        if (self.format > 2) != (self.block_frames > 0):
            raise ValueError(f"format {self.format} with block_frames = {self.block_frames}")
        return self

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        return (self.height, self.width, self.channels)

    @property
    def frame_bytes(self) -> int:
        return math.prod(self.frame_shape)

    @property
    def actions_shape(self) -> tuple[int, int]:
        return (self.horizon, self.action_dims)

    @property
    def actions_bytes(self) -> int:
        return 4 * math.prod(self.actions_shape)

    @property
    def is_ragged(self) -> bool:
        return self.format > 1

    def num_frames(self, length: int) -> int:
        """Frames in the row of an episode of `length` steps."""
        return (length if self.is_ragged else self.horizon) + 1

    def arrow_schema(self) -> pa.Schema:
        columns = [
            (FRAMES, pa.large_binary()),
            *([(FIRST_FRAME, pa.large_binary())] if self.is_ragged else []),
            *([(FRAME_BLOCKS, pa.large_binary())] if self.block_frames else []),
            ("actions", pa.large_binary()),
            ("length", pa.int64()),
            ("success", pa.bool_()),
            ("instruction", pa.string()),
            ("seed", pa.int64()),
            *((f"failure.{name}", pa.bool_()) for name in self.failures),
            *([(CORRECTIONS, pa.large_binary())] if self.has_corrections else []),
        ]
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


def header_of(episodes: Episodes) -> Header:
    """Raises ValueError if the shapes of the arrays are inconsistent."""
    num, shape, actions = len(episodes), episodes.frames.shape, episodes.actions
    dtype = getattr(episodes.frames, "dtype", np.dtype(np.uint8))
    if len(shape) != 5 or dtype != np.uint8 or shape[-1] != 3:
        raise ValueError(f"frames are {dtype} {shape}, expected uint8 [M, T+1, H, W, 3]")
    expected = (num, shape[1] - 1)
    if actions.ndim != 3 or actions.dtype != np.float32 or actions.shape[:2] != expected:
        raise ValueError(f"actions are {actions.dtype} {actions.shape}, expected float32 [M={num}, T={expected[1]}, D]")
    flags = {"success": episodes.success, **{f"failures[{name!r}]": v for name, v in episodes.failures.items()}}
    for name, values in {"lengths": episodes.lengths, "seeds": episodes.seeds, **flags}.items():
        kind = np.bool_ if name in flags else np.int64
        if values.shape != (num,) or values.dtype != kind:
            raise ValueError(f"{name} are {values.dtype} {values.shape}, expected {kind.__name__} [M={num}]")
    if num and not (0 <= episodes.lengths.min() and episodes.lengths.max() <= expected[1]):
        raise ValueError(
            f"lengths are {episodes.lengths.min()}..{episodes.lengths.max()}, outside [0, T={expected[1]}]"
        )
    if (own := episodes.corrections) is not None and (own.shape != expected or own.dtype != np.bool_):
        raise ValueError(f"corrections are {own.dtype} {own.shape}, expected bool {expected}")
    if len(episodes.instructions) != num:
        raise ValueError(f"{len(episodes.instructions)} instructions for {num} episodes")
    return Header(
        format=FORMAT,
        horizon=expected[1],
        height=shape[2],
        width=shape[3],
        channels=3,
        action_dims=actions.shape[2],
        frames_dtype="uint8",
        actions_dtype="float32",
        failures=list(episodes.failures),
        has_corrections=own is not None,
        block_frames=BLOCK_FRAMES,
    )


# -- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever Parquet raises inside the block into a `UserError` that names `path`."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or no trajectory file: {str(error).splitlines()[0]}") from error


def open_checked(path: Path) -> tuple[pq.ParquetFile, Header]:
    """A file whose sizes are those that its header declares. Raises UserError for any other."""
    with explained(regular_file(path, None)):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        try:
            header = _read_header(path, file)
            _check_sizes(path, file, header)
        except BaseException:
            file.close()
            raise
        return file, header


@contextmanager
def opened(path: Path) -> Iterator[tuple[pq.ParquetFile, Header]]:
    """Like `open_checked`, closed after the block; what Parquet raises in the block becomes a UserError too."""
    file, header = open_checked(path)
    with explained(path), file:
        yield file, header


def _read_header(path: Path, file: pq.ParquetFile) -> Header:
    schema = file.schema_arrow
    if METADATA_KEY not in (schema.metadata or {}):
        raise UserError(f"{path} is a Parquet file, but no trajectory file of this program")
    try:
        header = Header.model_validate_json(schema.metadata[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is damaged: its header is not valid: {where}: {first['msg']}") from error
    if not 1 <= header.format <= FORMAT:
        raise UserError(f"{path} has format {header.format}; this version reads formats 1 to {FORMAT}")
    if not schema.equals(header.arrow_schema()):
        raise UserError(f"{path} is damaged: its columns are not those that its header declares")
    return header


def _check_sizes(path: Path, file: pq.ParquetFile, header: Header) -> None:
    open_all_columns(path, file)
    num_rows = file.metadata.num_rows
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    if num_rows != sum(group.num_rows for group in groups):
        raise UserError(f"{path} is damaged: its row groups do not add up to its {num_rows} episodes")
    blocks = int(num_blocks(header.horizon + 1, header.block_frames)) if header.block_frames else 0
    value_bytes = {
        FRAMES: (header.horizon + 1) * header.frame_bytes * 129 // 128 + blocks * BLOCK_OVERHEAD,
        FIRST_FRAME: header.frame_bytes,
        FRAME_BLOCKS: 8 * blocks,
        "actions": header.actions_bytes,
        "instruction": MAX_INSTRUCTION_BYTES,
        CORRECTIONS: header.horizon,
    }
    for group in groups:
        for column in (group.column(i) for i in range(group.num_columns)):
            # Plain encoding puts 4 bytes of length before each value. The header of a page has about 50 bytes, and where
            # another program wrote the file, the smallest and the largest value.
            allowed = group.num_rows * (3 * value_bytes.get(column.path_in_schema, 0) + 1024) + 4096
            declared = column.total_uncompressed_size
            # A value in a dictionary is there once, and in memory as often as rows name it.
            once_for_all = column.has_dictionary_page and group.num_rows * declared > MAX_DICTIONARY_BYTES
            if declared > allowed or once_for_all or column.num_values != group.num_rows:
                raise UserError(
                    f"{path} is damaged: a row group of {group.num_rows} episodes declares {column.num_values} values "
                    f"and {declared} bytes of {column.path_in_schema}, at most {allowed} fit"
                )


def row_groups(path: Path, file: pq.ParquetFile, groups: Iterable[int], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Those columns of each row group, whole and well formed; the sizes of the values are not checked yet."""
    for i in groups:
        table = file.read_row_group(i, columns=list(columns))
        expected = file.metadata.row_group(i).num_rows
        if len(table) != expected or any(column.null_count for column in table.columns):
            raise UserError(f"{path} is damaged: row group {i} does not hold {expected} whole episodes")
        # The reader does not check offsets and text.
        table.validate(full=True)
        yield table


def check_lengths(path: Path, header: Header, lengths: np.ndarray) -> None:
    if len(lengths) and not (0 <= lengths.min() and lengths.max() <= header.horizon):
        raise UserError(f"{path} is damaged: an episode's length lies outside [0, {header.horizon}]")


def values_of(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Views [n] uint8 of the values of a validated column of large binaries; Arrow's own scalars are copies."""
    values = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64, len(chunk) + 1, 8 * chunk.offset) if len(chunk) else [0]
        content = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
        values += [content[start:end] for start, end in pairwise(ends)]
    return values


def column_of(values: Sequence[np.ndarray]) -> pa.Array:
    """Large binaries of the bytes of contiguous arrays; a single one is not copied."""
    flat = [value.reshape(-1).view(np.uint8) for value in values]
    ends = np.cumsum([0, *map(len, flat)], dtype=np.int64)
    content = flat[0] if len(flat) == 1 else np.concatenate([np.empty(0, np.uint8), *flat])
    return pa.Array.from_buffers(pa.large_binary(), len(flat), [None, pa.py_buffer(ends), pa.py_buffer(content)])


def array_of(path: Path, value: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A view of a value of `values_of`, which must have exactly the size of `shape`."""
    expected = np.dtype(dtype).itemsize * math.prod(shape)
    if value.size != expected:
        raise UserError(f"{path} is damaged: a value has {value.size} bytes instead of {expected}")
    return value.view(dtype).reshape(shape)


def read_frames(path: Path, file: pq.ParquetFile, header: Header, group: int) -> pa.Table:
    """The frames of one row group as a column of their bytes; each value has the size that its episode's length asks for."""
    columns = [FRAMES, "length"] + [FIRST_FRAME] * header.is_ragged + [FRAME_BLOCKS] * bool(header.block_frames)
    (table,) = row_groups(path, file, [group], columns)
    lengths = table["length"].to_numpy()
    check_lengths(path, header, lengths)
    shapes = [(header.num_frames(length), *header.frame_shape) for length in lengths.tolist()]
    values = values_of(table[FRAMES])
    if header.block_frames:
        videos = [np.empty(shape, np.uint8) for shape in shapes]
        for value, ends, video in zip(values, block_ends(path, header, table), videos, strict=True):
            decode_all(value, ends, video, header.block_frames)
    else:
        videos = [array_of(path, value, "u1", shape) for value, shape in zip(values, shapes, strict=True)]
    for value, video in zip(values_of(table[FIRST_FRAME]) if header.is_ragged else [], videos, strict=header.is_ragged):
        if not np.array_equal(array_of(path, value, "u1", header.frame_shape), video[0]):
            raise UserError(f"{path} is damaged: {FIRST_FRAME} of an episode is not the first of its {FRAMES}")
    column = column_of(videos) if header.block_frames else table[FRAMES]
    return pa.table({FRAMES: column})


def block_ends(path: Path, header: Header, table: pa.Table) -> list[np.ndarray]:
    """Of each row of a table with `frames`, `length` and `frame_blocks`: where its blocks end [blocks] int64, checked."""
    found = []
    rows = zip(values_of(table[FRAME_BLOCKS]), values_of(table[FRAMES]), table["length"].to_pylist(), strict=True)
    for value, frames, length in rows:
        ends = array_of(path, value, "<i8", (int(num_blocks(length + 1, header.block_frames)),))
        if not are_ends(ends, len(frames)):
            raise UserError(f"{path} is damaged: {FRAME_BLOCKS} of an episode do not divide its {len(frames)} bytes")
        found.append(ends)
    return found
