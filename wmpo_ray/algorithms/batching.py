"""Admitted groups to one padded, masked batch for the learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.algorithms import grpo
from wmpo_ray.core.types import Trajectories


class Batch(NamedTuple):
    """B trajectories of N chunks, contiguous by group."""

    frames: np.ndarray  # [B, N, H, W, 3] uint8
    instructions: tuple[str, ...]  # [B]
    tokens: Tensor  # [B, N, L] int64
    behavior_logprobs: Tensor  # [B, N, L]
    advantage: Tensor  # [B]
    mask: Tensor  # [B, N, L] bool: executed before the finish step


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
    actions = parts[0].actions
    num_chunks, chunk_length, action_dim = actions.shape[1:]
    return Batch(
        np.concatenate([part.frames for part in parts]),
        tuple(text for part in parts for text in part.instructions),
        torch.from_numpy(np.concatenate([part.action_tokens for part in parts])),
        torch.from_numpy(np.concatenate([part.behavior_logprobs for part in parts])),
        grpo.advantages(rewards, deviation).flatten(),
        token_mask(finish, num_chunks, chunk_length, action_dim),
    )


def token_mask(finish_step: Tensor, num_chunks: int, chunk_length: int, action_dim: int) -> Tensor:
    """[B] frames executed -> [B, N, K*D] bool: tokens of actions before the finish step."""
    step = torch.arange(num_chunks * chunk_length)
    executed = step[None] < finish_step[:, None]
    return executed.repeat_interleave(action_dim, 1).unflatten(1, (num_chunks, chunk_length * action_dim))
