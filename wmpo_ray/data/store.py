"""The trajectory store: `Episodes` as Parquet files, written in a stream and read lazily.

What a file holds, and how it is checked, is in `wmpo_ray.data.store_format`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from wmpo_ray.data.episodes import as_lazy
from wmpo_ray.data.frame_blocks import encode
from wmpo_ray.data.store_format import (
    CORRECTIONS,
    FRAMES,
    METADATA_KEY,
    Header,
    array_of,
    check_lengths,
    column_of,
    header_of,
    opened,
    read_frames,
    row_groups,
    values_of,
)
from wmpo_ray.data.stored_frames import StoredFrames, group_sizes

ROW_GROUP_BYTES = 32 * 2**20  # of frames, uncompressed; an episode that has more gets a row group of its own
PAGE_BYTES = 2**30  # more than a row group has, so that a column of it is one page
CACHE_BYTES = 512 * 2**20  # of decoded frames that a reader keeps
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
        for i, length in enumerate(episodes.lengths.tolist()):
            if self._rows and self._num_bytes + (length + 1) * header.frame_bytes > ROW_GROUP_BYTES:
                self._flush()
            video = frames.video(i)
            blocks, ends = encode(video, header.block_frames)
            self._num_bytes += video.nbytes
            # Rows are buffered here while the caller may free or change the batch: copies.
            self._executed.append(np.array(episodes.actions[i, :length]))
            self._rows.append(
                (
                    blocks,
                    video[0].copy(),
                    ends,
                    np.array(episodes.actions[i], "<f4"),
                    length,
                    episodes.success[i],
                    episodes.instructions[i],
                    episodes.seeds[i],
                    *(flags[i] for flags in episodes.failures.values()),
                    *([] if episodes.corrections is None else [episodes.corrections[i].astype(np.uint8)]),
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
        # A file without corrections is what it was before there were any.
        text = header.model_dump_json(exclude=None if header.has_corrections else {"has_corrections"})
        schema = header.arrow_schema().with_metadata({METADATA_KEY: text.encode()})
        options = {"use_dictionary": ["instruction"], "write_statistics": False, "data_page_size": PAGE_BYTES}
        options["compression"] = {name: "none" if name == FRAMES else "zstd" for name in schema.names}
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
        sizes = group_sizes(file)
        stored = [metadata.row_group(i).column(0).total_uncompressed_size for i in range(len(sizes))]
        _check_needed(path, header, sizes, stored, max_bytes)
        facts = _read_facts(path, file, header)
        parts = np.split(facts["lengths"] + 1, np.cumsum(sizes)[:-1])
        _check_needed(path, header, sizes, [int(part.sum()) * header.frame_bytes for part in parts], max_bytes)
    return Episodes(frames=StoredFrames(path, header, facts["lengths"], sizes, cache_bytes), **facts)


def _check_needed(path: Path, header: Header, sizes: Sequence[int], frame_bytes: Sequence[int], max_bytes: int) -> None:
    needed = sum(sizes) * header.actions_bytes + max(frame_bytes, default=0)
    if needed > max_bytes:
        raise UserError(
            f"{path} needs {needed} bytes for the actions of its {sum(sizes)} episodes and its largest row group of "
            f"frames, more than max_bytes={max_bytes}; write smaller row groups or raise max_bytes"
        )


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
    corrections = np.empty((num, header.horizon if header.has_corrections else 0), np.uint8)
    columns = ["actions", "instruction", *flat, *([CORRECTIONS] if header.has_corrections else [])]
    for table in row_groups(path, file, range(file.metadata.num_row_groups), columns):
        start = len(instructions)
        for row, value in enumerate(values_of(table["actions"]), start):
            actions[row] = array_of(path, value, "<f4", header.actions_shape)
        for row, value in enumerate(values_of(table[CORRECTIONS]) if header.has_corrections else [], start):
            corrections[row] = array_of(path, value, "u1", (header.horizon,))
        for name, column in flat.items():
            column[start : start + len(table)] = table[name].to_numpy()
        instructions += table["instruction"].to_pylist()
    check_lengths(path, header, flat["length"])
    if (corrections > 1).any():
        raise UserError(f"{path} is damaged: {CORRECTIONS} of an episode are neither true nor false")
    return {
        "actions": actions,
        "lengths": flat["length"],
        "success": flat["success"],
        "instructions": tuple(instructions),
        "seeds": flat["seed"],
        "failures": {name: flat[f"failure.{name}"] for name in header.failures},
        "corrections": corrections.view(bool) if header.has_corrections else None,
    }
