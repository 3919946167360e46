"""Trajectories as Ray datasets, for trainings on several workers.

A step's samples are windows at random places of all trajectories, chosen by a generator that every worker shares: that
is what makes a step the same on one worker and on many. A shard that is streamed past each worker cannot give that. So
Ray Data reads the row groups of the trajectory file in parallel, checked and decompressed once, and materialises their
frames as blocks in the object store, where Ray spills to disk what does not fit. A worker asks `train.get_dataset_shard`
for all blocks, unsplit, and maps the few that its samples lie in, without a copy: its own memory holds one batch.
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
import torch
from ray import train
from ray.data import DataContext
from torch import Tensor

from cluster.host.ray_private import block_sizes
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.store import load_frames, load_index

COLUMN = "frames"
BLOCKS_AT_ONCE = 4  # that a worker keeps from being spilled while it copies from them
BLOCK_BYTES = 128 * 2**20  # of frames that were in memory


class TrainingData:
    """The datasets of trainings, by name (implements `EpisodeSource`): the workers index what the methods return."""

    def __init__(self) -> None:
        self.datasets: dict[str, Any] = {}
        self._episodes: dict[str, Episodes] = {}
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        DataContext.get_current().enable_progress_bars = False

    def read(self, name: str, path: Path) -> Episodes:
        """The episodes of a file on storage that all nodes see; frames are read by Ray Data and not by this process.

        Raises `UserError` for a file that is missing or damaged.
        """
        path = path.absolute()
        if name in self._episodes:
            return self._episodes[name]
        episodes, group_sizes = load_index(path)
        groups = ray.data.range(len(group_sizes), override_num_blocks=max(1, len(group_sizes)))
        dataset = groups.map_batches(
            lambda batch: load_frames(path, int(batch["id"][0])), batch_size=1, batch_format="numpy"
        )
        dataset.context.execution_options.preserve_order = True
        return self._add(name, episodes, dataset.materialize())

    def put(self, name: str, episodes: Episodes) -> Episodes:
        """Episodes that this process has in memory."""
        rows = max(1, BLOCK_BYTES // episodes.frames[:1].nbytes)
        blocks = [
            pa.table(
                {COLUMN: pa.array([video.tobytes() for video in episodes.frames[i : i + rows]], pa.large_binary())}
            )
            for i in range(0, len(episodes), rows)
        ]
        return self._add(name, episodes, ray.data.from_arrow(blocks).materialize())

    def _add(self, name: str, episodes: Episodes, dataset: Any) -> Episodes:
        self.datasets[name] = dataset
        frames: Any = BlockFrames(name, block_sizes(dataset), episodes.frames.shape[1:])
        self._episodes[name] = replace(episodes, frames=frames)
        return self._episodes[name]


class BlockFrames:
    """Frames [M, T+1, H, W, 3] uint8 of a dataset of this training (implements `wmpo_ray.data.windows.Frames`).

    The blocks are looked up in the worker that first asks for one.
    """

    def __init__(self, name: str, block_sizes: Sequence[int], shape: Sequence[int]):
        self._name, self._shape = name, tuple(shape)
        self._starts = np.cumsum([0, *block_sizes])
        self._refs: list[Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._shape)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_refs": None}

    def __getitem__(self, index: tuple[Tensor, Tensor]) -> Tensor:
        rows, steps = torch.broadcast_tensors(*index)
        frames = torch.empty((*rows.shape, *self._shape[1:]), dtype=torch.uint8)
        flat, row, step = frames.view(-1, *self._shape[1:]).numpy(), rows.flatten().numpy(), steps.flatten().numpy()
        block = np.searchsorted(self._starts, row, "right") - 1
        needed = np.unique(block)
        for first in range(0, len(needed), BLOCKS_AT_ONCE):
            chosen = needed[first : first + BLOCKS_AT_ONCE]
            for number, table in zip(chosen, ray.get([self._blocks[i] for i in chosen]), strict=True):
                for i in np.unique(row[block == number]):
                    places = np.flatnonzero(row == i)
                    value = table[COLUMN][int(i - self._starts[number])].as_buffer()
                    flat[places] = np.frombuffer(value, np.uint8).reshape(self._shape)[step[places]]
        return frames

    @property
    def _blocks(self) -> list[Any]:
        if self._refs is None:
            shard: Any = train.get_dataset_shard(self._name)
            self._refs = shard.materialize().to_arrow_refs()
        return self._refs
