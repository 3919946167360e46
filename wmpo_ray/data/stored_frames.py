"""Frames that are read from a trajectory file as they are indexed."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from wmpo_ray.core.errors import UserError
from wmpo_ray.data.episodes import LazyFrames, gather
from wmpo_ray.data.frame_blocks import decode, num_blocks
from wmpo_ray.data.store_format import (
    FIRST_FRAME,
    FRAME_BLOCKS,
    FRAMES,
    Header,
    array_of,
    block_ends,
    explained,
    open_checked,
    read_frames,
    row_groups,
    values_of,
)

LENGTH_BYTES = 4  # before each value of a page


class _Places(NamedTuple):
    """Where the blocks of a row group stand in the file, counted over its episodes; bytes."""

    starts: np.ndarray  # [blocks] int64
    sizes: np.ndarray  # [blocks] int64


class StoredFrames(LazyFrames):
    """Frames of a file; keeps what was decoded last, up to `cache_bytes`, and at least the last piece.

    A piece is a block of frames, read from where it stands once its row group was read as a whole and its checksum was
    compared; or a whole row group, of a file whose blocks do not stand there as they are: one of an earlier format, or
    one that another program wrote.

    A copy in another process opens the file there, under the same path. Raises UserError where the file is missing,
    damaged, or another one than it was.
    """

    def __init__(self, path: Path, header: Header, lengths: np.ndarray, group_sizes: tuple[int, ...], cache_bytes: int):
        super().__init__(lengths, header.horizon, header.frame_shape)
        self.path, self.header, self.group_sizes, self.cache_bytes = path, header, group_sizes, cache_bytes
        self._starts = np.cumsum([0, *group_sizes])
        # Files without blocks have one for each episode.
        self._per_block = header.block_frames or header.horizon + 1
        counts = num_blocks(self.lengths + 1, self._per_block)
        self._first_block = np.cumsum([0, *np.asarray(counts).tolist()])  # of each episode
        self._row_of = np.repeat(np.arange(len(self.lengths)), counts)  # of each block
        self._group_of = np.repeat(np.arange(len(group_sizes)), group_sizes)  # of each episode
        self._forget()

    def _forget(self) -> None:
        self._file: pq.ParquetFile | None = None
        self._bytes: IO[bytes] | None = None
        self._places: dict[int, _Places | None] = {}  # by row group; None: its blocks do not stand there as they are
        self._decoded: OrderedDict[tuple[int, int], list[np.ndarray]] = OrderedDict()  # (row group, block or -1)
        self._num_bytes = 0  # of `_decoded`

    def __getstate__(self) -> dict[str, Any]:
        unopened: dict[str, Any] = {"_file": None, "_bytes": None, "_places": {}, "_decoded": OrderedDict()}
        return {**self.__dict__, **unopened, "_num_bytes": 0}

    def read(self, rows: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
        with explained(self.path):
            if self.header.is_ragged and not steps.any():
                self._read_first(rows, out)
            else:
                gather(self._block, self._first_block[rows] + steps // self._per_block, steps % self._per_block, out)

    def check_group(self, group: int) -> None:
        """Read and decode all of a row group. Raises UserError if it is damaged."""
        with explained(self.path):
            self._decode_group(group)

    def _read_first(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Nothing but the first frames is read for these."""
        group = self._group_of[rows]
        for number in np.unique(group):
            (table,) = row_groups(self.path, self._open(), [number], [FIRST_FRAME])
            values = values_of(table[FIRST_FRAME])
            for place in np.flatnonzero(group == number):
                value = values[rows[place] - self._starts[number]]
                out[place] = array_of(self.path, value, "u1", self.header.frame_shape)

    def _block(self, block: int) -> np.ndarray:
        row = int(self._row_of[block])
        group = int(self._group_of[row])
        if group not in self._places:
            self._places[group] = self._locate(group)
        places, at = self._places[group], block - int(self._first_block[self._starts[group]])
        key = (group, -1 if places is None else block)
        found = self._decoded.get(key)
        if found is None:
            found = self._decode_group(group) if places is None else [self._decode_block(row, block, places, at)]
            self._keep(key, found)
        else:
            self._decoded.move_to_end(key)
        return found[at if places is None else 0]

    def _decode_block(self, row: int, block: int, places: _Places, at: int) -> np.ndarray:
        first = (block - int(self._first_block[row])) * self._per_block
        num_frames = min(self._per_block, int(self.lengths[row]) + 1 - first)
        return decode(self._read_at(int(places.starts[at]), int(places.sizes[at])), num_frames, self.header.frame_shape)

    def _decode_group(self, group: int) -> list[np.ndarray]:
        """The blocks of all episodes of a row group."""
        table = read_frames(self.path, self._open(), self.header, group)
        videos = [value.reshape(-1, *self.header.frame_shape) for value in values_of(table[FRAMES])]
        self._check_lengths(group, [len(video) for video in videos])
        blocks = [np.array_split(video, range(self._per_block, len(video), self._per_block)) for video in videos]
        return [block for each in blocks for block in each]

    def _check_lengths(self, group: int, num_frames: list[int]) -> None:
        lengths = self.lengths[self._starts[group] : self._starts[group + 1]]
        if num_frames != [self.header.num_frames(length) for length in lengths.tolist()]:
            raise self._changed()

    def _locate(self, group: int) -> _Places | None:
        """Read a row group as a whole, which compares its checksum, and find where its blocks stand in the file.

        The values of a page stand one after the other up to its end. None if they do not stand there.
        """
        if not self.header.block_frames or not self.group_sizes[group]:
            return None
        (table,) = row_groups(self.path, self._open(), [group], [FRAMES, FRAME_BLOCKS, "length"])
        self._check_lengths(group, (table["length"].to_numpy() + 1).tolist())
        values, ends = values_of(table[FRAMES]), block_ends(self.path, self.header, table)
        sizes = np.array([len(value) for value in values])
        column = self._open().metadata.row_group(group).column(0)
        end = column.data_page_offset + column.total_compressed_size
        starts = end - np.cumsum((sizes + LENGTH_BYTES)[::-1])[::-1] + LENGTH_BYTES
        if column.compression != "UNCOMPRESSED" or starts[0] < 0 or not self._are_at(starts.tolist(), values):
            return None
        begins = [start + np.array([0, *each[:-1]]) for start, each in zip(starts, ends, strict=True)]
        return _Places(np.concatenate(begins), np.concatenate([np.diff(each, prepend=0) for each in ends]))

    def _are_at(self, starts: list[int], values: list[np.ndarray]) -> bool:
        assert self._bytes is not None
        found = (os.pread(self._bytes.fileno(), len(v), at) for at, v in zip(starts, values, strict=True))
        return all(content == value.tobytes() for content, value in zip(found, values, strict=True))

    def _read_at(self, place: int, num_bytes: int) -> bytes:
        assert self._bytes is not None
        return os.pread(self._bytes.fileno(), num_bytes, place)

    def _keep(self, key: tuple[int, int], blocks: list[np.ndarray]) -> None:
        self._decoded[key] = blocks
        self._num_bytes += _num_bytes(blocks)
        while self._num_bytes > self.cache_bytes and len(self._decoded) > 1:
            self._num_bytes -= _num_bytes(self._decoded.popitem(last=False)[1])

    def _open(self) -> pq.ParquetFile:
        """Stays open: a file that takes its place does not disturb who reads this one."""
        if self._file is None:
            file, header = open_checked(self.path)
            if (header, group_sizes(file)) != (self.header, self.group_sizes):
                file.close()
                raise self._changed()
            # If another file took the place in between, blocks are not found where they should be.
            self._file, self._bytes = file, open(self.path, "rb", buffering=0)  # noqa: SIM115  open as long as this is
        return self._file

    def _changed(self) -> UserError:
        return UserError(f"{self.path} is another file than when it was opened; run the stage again")


def group_sizes(file: pq.ParquetFile) -> tuple[int, ...]:
    """Episodes in each row group."""
    return tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))


def _num_bytes(blocks: Iterable[np.ndarray]) -> int:
    return sum(block.nbytes for block in blocks)
