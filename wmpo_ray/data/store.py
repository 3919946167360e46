"""The trajectory store: `Episodes` as Parquet files, written in a stream and read lazily.

What a file holds, and how it is checked, is in `wmpo_ray.data.store_format`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_file
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.about import ABOUT_KEY, About, Provenance, statistics_of
from wmpo_ray.data.episodes import LazyFrames, as_lazy, gather
from wmpo_ray.data.store_format import (
    FIRST_FRAME,
    FRAMES,
    METADATA_KEY,
    Header,
    array_of,
    check_lengths,
    column_of,
    explained,
    header_of,
    open_checked,
    opened,
    read_frames,
    row_groups,
    values_of,
)

ROW_GROUP_BYTES = 32 * 2**20  # of frames, uncompressed; an episode that has more gets a row group of its own
CACHE_BYTES = 512 * 2**20  # of decoded row groups that a reader keeps
DEFAULT_MAX_BYTES = 4 * 2**30


# -- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def episode_writer(path: Path, provenance: Provenance | None = None) -> Iterator[EpisodeWriter]:
    """Write a file batch by batch; it takes the place of `path` if the block succeeds, and on any failure what was
    there stays. Statistics of the executed actions are stored with it, and its provenance if one is given.

    Raises ValueError if nothing was appended, UserError on a full disk.
    """
    with atomic_file(path) as partial:
        writer = EpisodeWriter(partial, provenance)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


class EpisodeWriter:
    """Appends episodes to an unfinished file; holds the rows of one row group, and the actions for their statistics."""

    def __init__(self, path: Path, provenance: Provenance | None = None):
        self._path, self.provenance = path, provenance  # may be set until the end
        self._header: Header | None = None
        self._file: pq.ParquetWriter | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._num_bytes = 0  # of frames in `_rows`
        self._executed: list[np.ndarray] = []  # actions [length, D] of each episode

    def append(self, episodes: Episodes) -> None:
        """Raises ValueError if the arrays do not fit each other, or the episodes before."""
        header, frames = header_of(episodes), as_lazy(episodes)
        if self._file is None:
            self._begin(header)
        if header != self._header:
            raise ValueError(f"episodes of shape {header} do not fit those before, of shape {self._header}")
        for i, length in enumerate(episodes.lengths):
            if self._rows and self._num_bytes + (length + 1) * header.frame_bytes > ROW_GROUP_BYTES:
                self._flush()
            video = frames.video(i).copy()  # rows are buffered here while the caller may free or change the batch
            self._num_bytes += video.nbytes
            self._executed.append(np.array(episodes.actions[i, :length]))
            self._rows.append(
                (
                    video,
                    video[0],
                    np.array(episodes.actions[i], "<f4"),
                    length,
                    episodes.success[i],
                    episodes.instructions[i],
                    episodes.seeds[i],
                    *(flags[i] for flags in episodes.failures.values()),
                )
            )

    def finish(self) -> None:
        if self._file is None:
            raise ValueError("no episodes to write: append at least one batch")
        self._flush()
        about = About(provenance=self.provenance, statistics=statistics_of(self._executed))
        self._file.add_key_value_metadata({ABOUT_KEY: about.model_dump_json(exclude_none=True)})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self, header: Header) -> None:
        self._header = header
        schema = header.arrow_schema().with_metadata({METADATA_KEY: header.model_dump_json().encode()})
        options = {"compression": "zstd", "use_dictionary": ["instruction"], "write_statistics": False}
        self._file = pq.ParquetWriter(self._path, schema, write_page_checksum=True, **options)

    def _flush(self) -> None:
        assert self._file is not None
        if self._rows:
            schema = self._file.schema
            columns = [
                column_of(values) if pa.types.is_large_binary(kind) else pa.array(values, kind)
                for values, kind in zip(zip(*self._rows, strict=True), schema.types, strict=True)
            ]
            self._file.write_table(pa.Table.from_arrays(columns, schema=schema))
            self._rows, self._num_bytes = [], 0


def save_episodes(path: Path, episodes: Episodes, provenance: Provenance | None = None) -> None:
    """Write a file at once; like `episode_writer`."""
    with episode_writer(path, provenance) as writer:
        writer.append(episodes)


# -- reading ---------------------------------------------------------------------------------------------------------


def load_episodes(path: Path, max_bytes: int = DEFAULT_MAX_BYTES, cache_bytes: int = CACHE_BYTES) -> Episodes:
    """The episodes of a file, whose frames are read as they are indexed (`StoredFrames`); all else is in memory.

    Every size is checked before memory is taken for it. Raises UserError for a file that is missing, truncated,
    altered, no trajectory file, or needs more than `max_bytes` for its actions and its largest row group of frames.
    Reading frames raises it too.
    """
    path = path.absolute()
    with opened(path) as (file, header):
        metadata = file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        needed = metadata.num_rows * header.actions_bytes + max(
            (group.column(0).total_uncompressed_size for group in groups), default=0
        )
        if needed > max_bytes:
            raise UserError(
                f"{path} needs {needed} bytes for the actions of its {metadata.num_rows} episodes and its largest row "
                f"group of frames, more than max_bytes={max_bytes}; write smaller row groups or raise max_bytes"
            )
        facts = _read_facts(path, file, header)
        frames = StoredFrames(path, header, facts["lengths"], _group_sizes(file), cache_bytes)
    return Episodes(frames=frames, **facts)


def load_frames(path: Path, group: int) -> pa.Table:
    """The column `frames` of one row group of a file, checked, for who distributes the row groups of a file.

    Raises UserError as `load_episodes` does.
    """
    with opened(path) as (file, header):
        return read_frames(path, file, header, group)


def _read_facts(path: Path, file: pq.ParquetFile, header: Header) -> dict[str, Any]:
    """All fields of `Episodes` but the frames."""
    num = file.metadata.num_rows
    actions = np.empty((num, *header.actions_shape), np.float32)
    kinds = {"length": np.int64, "success": np.bool_, "seed": np.int64}
    kinds |= {f"failure.{name}": np.bool_ for name in header.failures}
    flat = {name: np.empty(num, kind) for name, kind in kinds.items()}
    instructions: list[str] = []
    columns = ["actions", "instruction", *flat]
    for table in row_groups(path, file, range(file.metadata.num_row_groups), columns):
        start = len(instructions)
        for row, value in enumerate(values_of(table["actions"]), start):
            actions[row] = array_of(path, value, "<f4", header.actions_shape)
        for name, column in flat.items():
            column[start : start + len(table)] = table[name].to_numpy()
        instructions += table["instruction"].to_pylist()
    check_lengths(path, header, flat["length"])
    return {
        "actions": actions,
        "lengths": flat["length"],
        "success": flat["success"],
        "instructions": tuple(instructions),
        "seeds": flat["seed"],
        "failures": {name: flat[f"failure.{name}"] for name in header.failures},
    }


class StoredFrames(LazyFrames):
    """Frames of a file; keeps the row groups decoded last, up to `cache_bytes`, and at least the last one.

    A copy in another process opens the file there, under the same path. Raises UserError where the file is missing,
    damaged, or another one than it was.
    """

    def __init__(self, path: Path, header: Header, lengths: np.ndarray, group_sizes: tuple[int, ...], cache_bytes: int):
        super().__init__(lengths, header.horizon, header.frame_shape)
        self.path, self.header, self.group_sizes, self.cache_bytes = path, header, group_sizes, cache_bytes
        self._starts = np.cumsum([0, *group_sizes])
        self._forget()

    def _forget(self) -> None:
        self._file: pq.ParquetFile | None = None
        self._decoded: OrderedDict[int, list[np.ndarray]] = OrderedDict()  # videos, by row group
        self._num_bytes = 0  # of `_decoded`

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_decoded": OrderedDict(), "_num_bytes": 0}

    def read(self, rows: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
        with explained(self.path):
            if self.header.is_ragged and not steps.any():
                self._read_first(rows, out)
            else:
                gather(self._video, rows, steps, out)

    def _read_first(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Nothing but the first frames is read for these."""
        group = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(group):
            (table,) = row_groups(self.path, self._open(), [number], [FIRST_FRAME])
            values = values_of(table[FIRST_FRAME])
            for place in np.flatnonzero(group == number):
                value = values[rows[place] - self._starts[number]]
                out[place] = array_of(self.path, value, "u1", self.header.frame_shape)

    def _video(self, row: int) -> np.ndarray:
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        if group not in self._decoded:
            self._keep(group, self._decode(group))
        self._decoded.move_to_end(group)
        return self._decoded[group][row - self._starts[group]]

    def _decode(self, group: int) -> list[np.ndarray]:
        table = read_frames(self.path, self._open(), self.header, group)
        videos = [value.reshape(-1, *self.header.frame_shape) for value in values_of(table[FRAMES])]
        lengths = self.lengths[self._starts[group] : self._starts[group + 1]]
        if [len(video) for video in videos] != [self.header.num_frames(length) for length in lengths.tolist()]:
            raise self._changed()
        return videos

    def _keep(self, group: int, videos: list[np.ndarray]) -> None:
        self._decoded[group] = videos
        self._num_bytes += _num_bytes(videos)
        while self._num_bytes > self.cache_bytes and len(self._decoded) > 1:
            self._num_bytes -= _num_bytes(self._decoded.popitem(last=False)[1])

    def _open(self) -> pq.ParquetFile:
        """Stays open: a file that takes its place does not disturb who reads this one."""
        if self._file is None:
            file, header = open_checked(self.path)
            if (header, _group_sizes(file)) != (self.header, self.group_sizes):
                file.close()
                raise self._changed()
            self._file = file
        return self._file

    def _changed(self) -> UserError:
        return UserError(f"{self.path} is another file than when it was opened; run the stage again")


def _group_sizes(file: pq.ParquetFile) -> tuple[int, ...]:
    return tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))


def _num_bytes(videos: Iterable[np.ndarray]) -> int:
    return sum(video.nbytes for video in videos)
