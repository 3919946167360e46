"""Recorded episodes for offline algorithms: sampling for each update, and the decisions in them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.windows import frames_at


def draw(count: int, size: int, *key: int | str) -> np.ndarray:
    """`size` of `count` numbers without replacement, in a random order; all of them, where there are fewer."""
    return np.random.default_rng(seed_for(*key)).permutation(count)[:size]


def decisions(
    episodes: Episodes, rows: np.ndarray, stride: int, chunk_length: int
) -> tuple[np.ndarray, Tensor, Tensor]:
    """A decision at every `stride`-th step of the episodes at rows [B], up to the longest one's end.

    Returns frames [B, N, H, W, 3] uint8, the next K actions [B, N, K, D], of which the last real one repeats after the
    end, and how many of them were executed, [B, N] int64; 0 for a decision after the end. No other frame is read.
    """
    lengths = torch.from_numpy(episodes.lengths[rows])
    steps = torch.arange(0, max(int(lengths.max()), 1), stride)
    index = torch.from_numpy(rows)[:, None]
    frames = frames_at(episodes.frames, index, steps[None])
    times = steps[:, None] + torch.arange(chunk_length)
    times = times[None].minimum((lengths - 1).clamp_min(0)[:, None, None])
    actions = torch.from_numpy(np.ascontiguousarray(episodes.actions[rows]))
    chunks = actions[torch.arange(len(rows))[:, None, None], times]
    return frames.numpy(), chunks, (lengths[:, None] - steps[None]).clamp(0, chunk_length)
