"""The trajectory store: `Episodes` as Parquet, one row per episode.

Columns: `frames` (the bytes of [T+1, H, W, 3] uint8), `actions` (of [T, D] little-endian float32), `length`, `success`,
`instruction`, `seed` and `failure.<name>` for each failure that the environment tells. The shapes stand in the schema's
metadata under `wmpo_ray`, as JSON. Any Parquet reader opens it; nothing is pickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_file
from wmpo_ray.core.types import Episodes

FORMAT = 1
METADATA_KEY = b"wmpo_ray"
ROW_GROUP_BYTES = 128 * 2**20  # of frames, uncompressed: what reader and writer hold besides the episodes themselves
DEFAULT_MAX_BYTES = 16 * 2**30
MAX_INSTRUCTION_BYTES = 4096

_Size = Annotated[int, Field(ge=1)]


class _Header(BaseModel):
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

    @property
    def frames_shape(self) -> tuple[int, ...]:
        return (self.horizon + 1, self.height, self.width, self.channels)

    @property
    def actions_shape(self) -> tuple[int, ...]:
        return (self.horizon, self.action_dims)

    @property
    def frames_bytes(self) -> int:
        return math.prod(self.frames_shape)

    @property
    def actions_bytes(self) -> int:
        return 4 * math.prod(self.actions_shape)

    def arrow_schema(self) -> pa.Schema:
        columns = [
            ("frames", pa.large_binary()),
            ("actions", pa.large_binary()),
            ("length", pa.int64()),
            ("success", pa.bool_()),
            ("instruction", pa.string()),
            ("seed", pa.int64()),
            *((f"failure.{name}", pa.bool_()) for name in self.failures),
        ]
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


def save_episodes(path: Path, episodes: Episodes) -> None:
    """Write episodes as Parquet; on any failure what stood at `path` stays.

    Raises `ValueError` if the arrays do not fit each other, `UserError` on a full disk.
    """
    header = _header_of(episodes)
    schema = header.arrow_schema().with_metadata({METADATA_KEY: header.model_dump_json().encode()})
    rows_per_group = max(1, ROW_GROUP_BYTES // header.frames_bytes)
    options = {"compression": "zstd", "use_dictionary": ["instruction"], "write_statistics": False}
    with (
        atomic_file(path) as partial,
        pq.ParquetWriter(partial, schema, write_page_checksum=True, **options) as writer,
    ):
        for start in range(0, len(episodes), rows_per_group):
            writer.write_table(_to_table(episodes.rows(slice(start, start + rows_per_group)), schema))


def load_episodes(path: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> Episodes:
    """Read what `save_episodes` wrote; every size is checked before memory is taken for it.

    Raises `UserError` for a file that is missing, truncated, altered, not one of these, or larger than `max_bytes`
    once it is in memory.
    """
    with _opened(path) as (file, header):
        groups = range(file.metadata.num_row_groups)
        _check_total(path, file, header, groups, max_bytes)
        return _read_rows(path, file, header, groups)


def load_last_episodes(path: Path, count: int, max_bytes: int = DEFAULT_MAX_BYTES) -> Episodes:
    """The last `count` episodes of a file; the others are not read, as far as they stand in row groups of their own."""
    with _opened(path) as (file, header):
        first, held = file.metadata.num_row_groups, 0
        while first > 0 and held < count:
            first -= 1
            held += file.metadata.row_group(first).num_rows
        groups = range(first, file.metadata.num_row_groups)
        _check_total(path, file, header, groups, max_bytes)
        return _read_rows(path, file, header, groups).rows(slice(max(0, held - count), None))


class EpisodeIndex(NamedTuple):
    """A file without its frames."""

    episodes: Episodes  # with frames [M, T+1, H, W, 3] that are all 0 and take no memory
    group_sizes: tuple[int, ...]  # episodes in each row group; `load_frames` reads one of them


def load_index(path: Path) -> EpisodeIndex:
    """Raises `UserError` as `load_episodes` does, but not for the size of the frames."""
    with _opened(path) as (file, header):
        groups = range(file.metadata.num_row_groups)
        sizes = tuple(file.metadata.row_group(i).num_rows for i in groups)
        return EpisodeIndex(_read_rows(path, file, header, groups, with_frames=False), sizes)


def load_frames(path: Path, group: int) -> pa.Table:
    """The column `frames` of one row group: for each episode the bytes of [T+1, H, W, 3] uint8.

    Raises `UserError` as `load_episodes` does.
    """
    with _opened(path) as (file, header):
        (table,) = _row_groups(path, file, [group], ["frames"])
        for value in table["frames"]:
            _check_value(path, value.as_buffer(), header.frames_bytes)
        return table.replace_schema_metadata()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[pq.ParquetFile, _Header]]:
    """A file whose sizes are those that its header tells of."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            header = _read_header(path, file)
            _check_sizes(path, file, header)
            yield file, header
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or no trajectory file: {str(error).splitlines()[0]}") from error


def _header_of(episodes: Episodes) -> _Header:
    num, frames, actions = len(episodes), episodes.frames, episodes.actions
    if frames.ndim != 5 or frames.dtype != np.uint8 or frames.shape[-1] != 3:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 [M, T+1, H, W, 3]")
    expected = (num, frames.shape[1] - 1)
    if actions.ndim != 3 or actions.dtype != np.float32 or actions.shape[:2] != expected:
        raise ValueError(f"actions are {actions.dtype} {actions.shape}, expected float32 [M={num}, T={expected[1]}, D]")
    flags = {"success": episodes.success, **{f"failures[{name!r}]": v for name, v in episodes.failures.items()}}
    for name, values in {"lengths": episodes.lengths, "seeds": episodes.seeds, **flags}.items():
        kind = np.bool_ if name in flags else np.int64
        if values.shape != (num,) or values.dtype != kind:
            raise ValueError(f"{name} are {values.dtype} {values.shape}, expected {kind.__name__} [M={num}]")
    if len(episodes.instructions) != num:
        raise ValueError(f"{len(episodes.instructions)} instructions for {num} episodes")
    return _Header(
        format=FORMAT,
        horizon=actions.shape[1],
        height=frames.shape[2],
        width=frames.shape[3],
        channels=3,
        action_dims=actions.shape[2],
        frames_dtype="uint8",
        actions_dtype="float32",
        failures=list(episodes.failures),
    )


def _to_table(episodes: Episodes, schema: pa.Schema) -> pa.Table:
    columns = [
        [frames.tobytes() for frames in episodes.frames],
        [actions.astype("<f4", copy=False).tobytes() for actions in episodes.actions],
        episodes.lengths,
        episodes.success,
        list(episodes.instructions),
        episodes.seeds,
        *episodes.failures.values(),
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _read_header(path: Path, file: pq.ParquetFile) -> _Header:
    schema = file.schema_arrow
    if METADATA_KEY not in (schema.metadata or {}):
        raise UserError(f"{path} is a Parquet file, but no trajectory file of this program")
    try:
        header = _Header.model_validate_json(schema.metadata[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is damaged: its header is not valid: {where}: {first['msg']}") from error
    if header.format != FORMAT:
        raise UserError(f"{path} has format {header.format}; this version reads format {FORMAT}")
    if not schema.equals(header.arrow_schema()):
        raise UserError(f"{path} is damaged: its columns are not those that its header tells of")
    return header


def _check_total(path: Path, file: pq.ParquetFile, header: _Header, groups: Iterable[int], max_bytes: int) -> None:
    num_rows = sum(file.metadata.row_group(i).num_rows for i in groups)
    total = num_rows * (header.frames_bytes + header.actions_bytes)
    if total > max_bytes:
        raise UserError(
            f"{path} holds {num_rows} episodes of together {total} bytes, more than max_bytes={max_bytes}; "
            "load fewer or raise max_bytes"
        )


def _check_sizes(path: Path, file: pq.ParquetFile, header: _Header) -> None:
    num_rows = file.metadata.num_rows
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    if num_rows != sum(group.num_rows for group in groups):
        raise UserError(f"{path} is damaged: its row groups do not add up to its {num_rows} episodes")
    value_bytes = {"frames": header.frames_bytes, "actions": header.actions_bytes, "instruction": MAX_INSTRUCTION_BYTES}
    for group in groups:
        for column in (group.column(i) for i in range(group.num_columns)):
            # Plain encoding puts 4 bytes of length before each value; pages have headers of about 50 bytes.
            allowed = group.num_rows * (value_bytes.get(column.path_in_schema, 0) + 1024) + 4096
            declared = column.total_uncompressed_size
            # A value in a dictionary is there once, and in memory as often as rows name it.
            once_for_all = column.has_dictionary_page and group.num_rows * declared > DEFAULT_MAX_BYTES
            if declared > allowed or once_for_all or column.num_values != group.num_rows:
                raise UserError(
                    f"{path} is damaged: a row group of {group.num_rows} episodes tells of {column.num_values} values "
                    f"and {declared} bytes of {column.path_in_schema}, at most {allowed} fit"
                )


def _read_rows(
    path: Path, file: pq.ParquetFile, header: _Header, groups: Sequence[int], with_frames: bool = True
) -> Episodes:
    num = sum(file.metadata.row_group(i).num_rows for i in groups)
    shape = (num, *header.frames_shape)
    episodes = Episodes(
        frames=np.empty(shape, np.uint8) if with_frames else np.broadcast_to(np.uint8(0), shape),
        actions=np.empty((num, *header.actions_shape), np.float32),
        lengths=np.empty(num, np.int64),
        success=np.empty(num, np.bool_),
        instructions=(),
        seeds=np.empty(num, np.int64),
        failures={name: np.empty(num, np.bool_) for name in header.failures},
    )
    instructions: list[str] = []
    flat = {"length": episodes.lengths, "success": episodes.success, "seed": episodes.seeds}
    flat |= {f"failure.{name}": flags for name, flags in episodes.failures.items()}
    columns = [name for name in file.schema_arrow.names if with_frames or name != "frames"]
    start = 0
    for table in _row_groups(path, file, groups, columns):
        stop = start + len(table)
        if with_frames:
            _copy_values(path, table["frames"], episodes.frames[start:stop], header.frames_bytes)
        _copy_values(path, table["actions"], episodes.actions[start:stop], header.actions_bytes)
        for name, column in flat.items():
            column[start:stop] = table[name].to_numpy()
        instructions += table["instruction"].to_pylist()
        start = stop
    if num and not (0 <= episodes.lengths.min() and episodes.lengths.max() <= header.horizon):
        raise UserError(f"{path} is damaged: an episode's length lies outside [0, {header.horizon}]")
    return Episodes(**{**vars(episodes), "instructions": tuple(instructions)})


def _row_groups(path: Path, file: pq.ParquetFile, groups: Iterable[int], columns: list[str]) -> Iterator[pa.Table]:
    for i in groups:
        table = file.read_row_group(i, columns=columns)
        expected = file.metadata.row_group(i).num_rows
        if len(table) != expected or any(column.null_count for column in table.columns):
            raise UserError(f"{path} is damaged: row group {i} does not hold {expected} whole episodes")
        # Offsets and text are not looked at while reading.
        table.validate(full=True)
        yield table


def _check_value(path: Path, buffer: pa.Buffer, num_bytes: int) -> None:
    if buffer.size != num_bytes:
        raise UserError(f"{path} is damaged: a value has {buffer.size} bytes instead of {num_bytes}")


def _copy_values(path: Path, column: pa.ChunkedArray, target: np.ndarray, num_bytes: int) -> None:
    """Fill target [m, ...] with the m values of the column."""
    for row, value in enumerate(column):
        buffer = value.as_buffer()
        _check_value(path, buffer, num_bytes)
        dtype = target.dtype.newbyteorder("<")
        target[row] = np.frombuffer(buffer, dtype).reshape(target.shape[1:])
