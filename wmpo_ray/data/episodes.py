"""Lazy frames of episodes: stored ragged, padded and read when indexed.

They index like an array [M, T+1, H, W, 3] by episode, or by episode and step, and give arrays. So windows, cloning,
reward training and the gate take episodes that lie in memory, in a file or in an object store alike, and what a reader
holds is what it asked for. The bytes are the same either way.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from wmpo_ray.core.types import Episodes, Frames

BATCH_BYTES = 512 * 2**20  # of frames that a stage processes at a time


class LazyFrames(ABC):
    """Frames [M, T+1, H, W, 3] uint8 (implements `wmpo_ray.core.types.Frames`).

    Episode i has `lengths[i]` + 1 real frames; a step after them shows the last one.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, lengths: np.ndarray, horizon: int, frame_shape: Sequence[int]):
        self.lengths = np.asarray(lengths, np.int64)  # [M]
        self.horizon, self.frame_shape = horizon, tuple(frame_shape)  # T, (H, W, 3)

    @abstractmethod
    def read(self, rows: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
        """Fill out [n, H, W, 3] with the real frames at rows [n] and steps [n]."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), self.horizon + 1, *self.frame_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all frames, padded, if they were in memory."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> np.ndarray:
        """`frames[rows]` or `frames[rows, steps]`, each an integer, a slice, a boolean mask or integers.

        Two arrays broadcast, as they do for an array. Raises IndexError outside of the shape.
        """
        row, step = index if isinstance(index, tuple) else (index, slice(None))
        rows, steps = np.arange(len(self))[row], np.arange(self.horizon + 1)[step]
        if isinstance(row, slice) or isinstance(step, slice):
            rows = rows.reshape(rows.shape + (1,) * steps.ndim)
        rows, steps = np.broadcast_arrays(rows, steps)
        frames = np.empty((*rows.shape, *self.frame_shape), np.uint8)
        flat = rows.reshape(-1)
        self.read(flat, np.minimum(steps.reshape(-1), self.lengths[flat]), frames.reshape(-1, *self.frame_shape))
        return frames

    def video(self, row: int) -> np.ndarray:
        """The real frames [lengths[row] + 1, H, W, 3] of one episode."""
        return self[row, : int(self.lengths[row]) + 1]

    def with_horizon(self, horizon: int) -> Self:
        """The same frames with room for another horizon, at least that of the longest episode."""
        other = copy.copy(self)
        other.horizon = horizon
        return other

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def select(self, rows: np.ndarray) -> Frames:
        return SelectedFrames(self, np.asarray(rows, np.int64))


class RaggedFrames(LazyFrames):
    """Frames in memory, of each episode only the real ones: videos[i] is [lengths[i] + 1, H, W, 3]."""

    def __init__(self, videos: Sequence[np.ndarray], horizon: int, frame_shape: Sequence[int]):
        super().__init__(np.array([len(video) - 1 for video in videos], np.int64), horizon, frame_shape)
        self._videos = list(videos)

    def video(self, row: int) -> np.ndarray:
        return self._videos[row]

    def read(self, rows: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
        gather(self._videos.__getitem__, rows, steps, out)


class SelectedFrames(LazyFrames):
    """A selection of the episodes of other frames."""

    def __init__(self, source: LazyFrames, rows: np.ndarray):
        super().__init__(source.lengths[rows], source.horizon, source.frame_shape)
        self._source, self._rows = source, rows

    def read(self, rows: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
        self._source.read(self._rows[rows], steps, out)

    def select(self, rows: np.ndarray) -> Frames:
        return SelectedFrames(self._source, self._rows[rows])


class JoinedFrames(LazyFrames):
    """The episodes of several sources one after the other; they share horizon and frame shape."""

    def __init__(self, parts: Sequence[LazyFrames]):
        super().__init__(np.concatenate([part.lengths for part in parts]), parts[0].horizon, parts[0].frame_shape)
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, parts)])

    def read(self, rows: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
        part = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(part):
            places = np.flatnonzero(part == number)
            found = out if len(places) == len(rows) else np.empty((len(places), *self.frame_shape), np.uint8)
            self._parts[number].read(rows[places] - self._starts[number], steps[places], found)
            if found is not out:
                out[places] = found


def gather(video_of: Callable[[int], np.ndarray], rows: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
    """Fill out [n, H, W, 3] from videos [length + 1, H, W, 3], each of which is asked for once.

    Neighbours in a video that are neighbours in `out`, as those of a window are, are copied at once.
    """
    if not len(rows):
        return
    order = np.argsort(rows, kind="stable")
    rows, steps = rows[order], steps[order]
    is_next = (np.diff(rows) == 0) & (np.diff(steps) == 1) & (np.diff(order) == 1)
    begins = np.concatenate(
        [[0], np.flatnonzero(~is_next) + 1, [len(rows)]]
    )  # of the runs, and where the last one ends
    firsts = begins[:-1]
    video, of = np.empty(0), -1
    for row, place, step, num in zip(
        rows[firsts].tolist(), order[firsts].tolist(), steps[firsts].tolist(), np.diff(begins).tolist(), strict=True
    ):
        if row != of:
            video, of = video_of(row), row
        out[place : place + num] = video[step : step + num]


def as_lazy(episodes: Episodes) -> LazyFrames:
    """The frames of any episodes; those of an array are not copied."""
    frames = episodes.frames
    if isinstance(frames, LazyFrames):
        return frames
    videos = [frames[i, : length + 1] for i, length in enumerate(episodes.lengths)]
    return RaggedFrames(videos, frames.shape[1] - 1, frames.shape[2:])


def concatenate_episodes(parts: Sequence[Episodes]) -> Episodes:
    """One after the other; frames that are not in memory stay unread. Failure modes that not all report are left out."""
    if all(isinstance(part.frames, np.ndarray) for part in parts):
        frames: np.ndarray | Frames = np.concatenate([np.asarray(part.frames) for part in parts])
    else:
        frames = JoinedFrames([as_lazy(part) for part in parts])
    return Episodes(
        frames,
        np.concatenate([p.actions for p in parts]),
        np.concatenate([p.lengths for p in parts]),
        np.concatenate([p.success for p in parts]),
        tuple(text for p in parts for text in p.instructions),
        np.concatenate([p.seeds for p in parts]),
        {
            name: np.concatenate([p.failures[name] for p in parts])
            for name in parts[0].failures
            if all(name in p.failures for p in parts)
        },
        _joined_corrections(parts),
    )


def _joined_corrections(parts: Sequence[Episodes]) -> np.ndarray | None:
    """[M, T] bool, where any of the parts knows of some."""
    if all(part.corrections is None for part in parts):
        return None
    none = (np.zeros(part.actions.shape[:2], bool) for part in parts)
    return np.concatenate([n if part.corrections is None else part.corrections for n, part in zip(none, parts)])


def batch_within(frames_shape: Sequence[int], max_bytes: int | None = None, max_size: int = 64) -> int:
    """How many episodes fit into `max_bytes` (default: `BATCH_BYTES`), from 1 to `max_size`.

    `frames_shape` is [T+1, H, W, 3], or has other axes before these.
    """
    return min(max_size, max(1, (max_bytes or BATCH_BYTES) // math.prod(frames_shape[-4:])))


def parts_of(episodes: Episodes, max_bytes: int | None = None) -> Iterator[Episodes]:
    """Episodes that can be in memory together, in order: as many as have `max_bytes` of padded frames, at least one."""
    for rows in batches_of_rows(episodes.frames.shape, max_bytes):
        yield episodes.rows(rows)


def batches_of_rows(frames_shape: Sequence[int], max_bytes: int | None = None) -> Iterator[slice]:
    """The rows of each of `parts_of` episodes whose frames are [M, T+1, H, W, 3]."""
    num = frames_shape[0]
    step = batch_within(frames_shape, max_bytes, max(1, num))
    for start in range(0, num, step):
        yield slice(start, start + step)
