"""Admitted groups to one padded, masked batch for the learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.algorithms import grpo
from wmpo_ray.core.types import Observation, Trajectories


class Batch(NamedTuple):
    """B trajectories of N chunks, contiguous by group."""

    images: dict[str, np.ndarray]  # camera -> [B, N, H, W, 3] uint8, the main one first
    state: np.ndarray | None  # [B, N, S] float32
    instructions: tuple[str, ...]  # [B]
    record: dict[str, Tensor]  # [B, N, ...] each
    behavior_logprobs: Tensor  # [B, N, L]
    advantage: Tensor  # [B]
    mask: Tensor  # [B, N, L] bool: executed before the finish step

    def decisions(self, rows: slice, first: Tensor, second: Tensor) -> tuple[Observation, dict[str, Tensor]]:
        """What was seen and recorded at the decisions (first, second) [P] each of the trajectories `rows`."""
        texts, place = self.instructions[rows], (first.numpy(), second.numpy())
        observation = Observation(
            {camera: images[rows][place] for camera, images in self.images.items()},
            tuple(texts[i] for i in first.tolist()),
            None if self.state is None else self.state[rows][place],
        )
        return observation, {name: values[rows][first, second] for name, values in self.record.items()}


class GroupSlice(NamedTuple):
    """Where one admitted group stands: which of the trajectory objects, which rows of it, and its outcomes."""

    source: int
    rows: tuple[int, int]
    success: np.ndarray  # [G] bool
    finish_step: np.ndarray  # [G] int64


def build_batch(
    groups: Sequence[GroupSlice], sources: Sequence[Trajectories], deviation: grpo.Deviation = "population"
) -> Batch:
    """Stack the groups in the order given; `deviation`: what advantages are divided by, see `grpo.advantages`."""
    parts = [sources[group.source].rows(*group.rows) for group in groups]
    rewards = torch.from_numpy(np.stack([group.success for group in groups])).float()
    finish = torch.from_numpy(np.concatenate([group.finish_step for group in groups]))
    states = [part.state for part in parts if part.state is not None]
    actions = parts[0].actions
    num_chunks, chunk_length, action_dim = actions.shape[1:]
    return Batch(
        {camera: np.concatenate([part.images[camera] for part in parts]) for camera in parts[0].images},
        np.concatenate(states) if states else None,
        tuple(text for part in parts for text in part.instructions),
        {name: torch.from_numpy(np.concatenate([part.record[name] for part in parts])) for name in parts[0].record},
        torch.from_numpy(np.concatenate([part.behavior_logprobs for part in parts])),
        grpo.advantages(rewards, deviation).flatten(),
        token_mask(finish, num_chunks, chunk_length, action_dim),
    )


def token_mask(finish_step: Tensor, num_chunks: int, chunk_length: int, action_dim: int) -> Tensor:
    """[B] frames executed -> [B, N, K*D] bool: tokens of actions before the finish step."""
    step = torch.arange(num_chunks * chunk_length)
    executed = step[None] < finish_step[:, None]
    return executed.repeat_interleave(action_dim, 1).unflatten(1, (num_chunks, chunk_length * action_dim))
