"""Training windows of a world model: context frames, actions and the frames that follow, cut from trajectories."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.core.types import Frames


def frames_at(frames: np.ndarray | Frames, row: Tensor, step: Tensor) -> Tensor:
    """Frames [..., H, W, 3] uint8 at episodes and steps, two int64 tensors that broadcast; only these are read."""
    return torch.from_numpy(frames[row.numpy(), step.numpy()])


class WindowBatch(NamedTuple):
    clip: Tensor  # [B, c+K, H, W, 3] uint8
    actions: Tensor  # [B, K, D] float32
    previous_clip: Tensor  # [B, c+K, H, W, 3] uint8, the window K frames earlier (itself where there is none)
    previous_actions: Tensor  # [B, K, D]
    has_previous: Tensor  # [B] bool


class WindowSampler:
    """Draws windows at random with the given weights.

    frames [M, T+1, H, W, 3] uint8, in memory or read as they are drawn, actions [M, T, D] float32, lengths [M] steps
    that are real; `weights` [M, T] is the weight of a window whose first action is at that step (default: uniform). A
    window that starts before c frames exist repeats the first frame.
    """

    def __init__(self, frames, actions, lengths, context_frames: int, chunk_length: int, weights=None):
        self.frames, self.actions = frames, torch.as_tensor(actions)
        self.c, self.k = context_frames, chunk_length
        horizon = self.actions.shape[1]
        weight = np.ones((len(lengths), horizon)) if weights is None else np.array(weights, np.float64)
        weight[np.arange(horizon)[None] > np.asarray(lengths)[:, None] - chunk_length] = 0.0
        if not weight.sum() > 0:
            raise ValueError(f"no trajectory is as long as a chunk of {chunk_length} frames; collect longer ones")
        rows, steps = np.nonzero(weight)
        self._index = torch.from_numpy(np.stack([rows, steps], 1))
        self._cumulative = torch.from_numpy((weight[rows, steps] / weight.sum()).cumsum())

    def draw(self, batch_size: int, generator: torch.Generator) -> WindowBatch:
        return self.windows(self.choose(batch_size, generator))

    def choose(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Which windows come next: episode and step of the first action [B, 2]."""
        u = torch.rand(batch_size, generator=generator, dtype=torch.float64)
        chosen = torch.searchsorted(self._cumulative, u).clamp_max(len(self._index) - 1)
        return self._index[chosen]

    def windows(self, index: Tensor) -> WindowBatch:
        """Those that `choose` named; only here are frames read."""
        row, step = index.unbind(1)
        earlier = (step - self.k).clamp_min(0)
        return WindowBatch(
            self._clip(row, step),
            self._actions(row, step),
            self._clip(row, earlier),
            self._actions(row, earlier),
            step >= self.k,
        )

    def _clip(self, row: Tensor, step: Tensor) -> Tensor:
        offsets = torch.arange(1 - self.c, self.k + 1)
        return frames_at(self.frames, row[:, None], (step[:, None] + offsets).clamp_min(0))

    def _actions(self, row: Tensor, step: Tensor) -> Tensor:
        return self.actions[row[:, None], step[:, None] + torch.arange(self.k)]
