"""Trajectories as Ray datasets, for trainings on several workers.

A step's samples are windows at random positions of all trajectories, chosen by a generator that every worker shares:
this makes a step the same on one worker and on many. Streamed shards do not allow that. So Ray Data reads the row
groups of the trajectory file in parallel, checked and decompressed once, and materialises their frames as blocks in the
object store; Ray spills to disk what does not fit. A worker gets all blocks, unsplit, from `train.get_dataset_shard` and
maps the few that contain its samples, without a copy: its own memory holds one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray import train
from ray.data import DataContext

from cluster.host.ray_private import block_sizes
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.episodes import LazyFrames, as_lazy, gather, parts_of
from wmpo_ray.data.store import StoredFrames, load_episodes, load_frames
from wmpo_ray.data.store_format import FRAMES, column_of, values_of

BLOCKS_AT_ONCE = 4  # pinned in memory while a worker copies from them
BLOCK_BYTES = 128 * 2**20  # of frames that this process reads


class TrainingData:
    """The datasets of trainings, by name (implements `EpisodeSource`); workers index the returned episodes."""

    def __init__(self) -> None:
        self.datasets: dict[str, Any] = {}
        self._episodes: dict[str, Episodes] = {}
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        DataContext.get_current().enable_progress_bars = False

    def read(self, name: str, path: Path) -> Episodes:
        """The episodes of a file on storage that all nodes see; frames are read by Ray Data, not by this process.

        Raises `UserError` for a file that is missing or damaged.
        """
        path = path.absolute()
        if name in self._episodes:
            return self._episodes[name]
        episodes = load_episodes(path)
        assert isinstance(episodes.frames, StoredFrames)
        num_groups = len(episodes.frames.group_sizes)
        groups = ray.data.range(num_groups, override_num_blocks=max(1, num_groups))
        dataset = groups.map_batches(
            lambda batch: load_frames(path, int(batch["id"][0])), batch_size=1, batch_format="numpy"
        )
        dataset.context.execution_options.preserve_order = True
        return self._add(name, episodes, dataset.materialize())

    def put(self, name: str, episodes: Episodes) -> Episodes:
        """Store episodes that this process reads, one block at a time."""
        blocks = [ray.put(_block(part)) for part in parts_of(episodes, BLOCK_BYTES)]
        return self._add(name, episodes, ray.data.from_arrow_refs(blocks).materialize())

    def _add(self, name: str, episodes: Episodes, dataset: Any) -> Episodes:
        self.datasets[name] = dataset
        self._episodes[name] = replace(episodes, frames=BlockFrames(name, block_sizes(dataset), as_lazy(episodes)))
        return self._episodes[name]


class BlockFrames(LazyFrames):
    """Frames of a dataset of this training.

    The blocks are looked up in the worker that first asks for one.
    """

    def __init__(self, name: str, block_sizes: Sequence[int], like: LazyFrames):
        super().__init__(like.lengths, like.horizon, like.frame_shape)
        self._name = name
        self._starts = np.cumsum([0, *block_sizes])
        self._refs: list[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_refs": None}

    def read(self, rows: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
        block = np.searchsorted(self._starts, rows, "right") - 1
        needed = np.unique(block)
        for first in range(0, len(needed), BLOCKS_AT_ONCE):
            chosen = needed[first : first + BLOCKS_AT_ONCE]
            tables = dict(zip(chosen.tolist(), ray.get([self._blocks[i] for i in chosen]), strict=True))

            def video(row: int, tables: dict[int, pa.Table] = tables) -> np.ndarray:
                number = int(np.searchsorted(self._starts, row, "right")) - 1
                return values_of(tables[number][FRAMES])[row - self._starts[number]].reshape(-1, *self.frame_shape)

            places = np.flatnonzero(np.isin(block, chosen))
            found = np.empty((len(places), *self.frame_shape), np.uint8)
            gather(video, rows[places], steps[places], found)
            out[places] = found

    @property
    def _blocks(self) -> list[Any]:
        if self._refs is None:
            shard: Any = train.get_dataset_shard(self._name)
            self._refs = shard.materialize().to_arrow_refs()
        return self._refs


def _block(episodes: Episodes) -> pa.Table:
    """The real frames of each episode as one value, as a trajectory file holds them."""
    frames = as_lazy(episodes)
    return pa.table({FRAMES: column_of([np.ascontiguousarray(frames.video(i)) for i in range(len(frames))])})
