"""How an action expert attends to what a vision-language model read, as SmolVLA, pi0 and pi0.5 have it.

B rows, P tokens of what was read, K actions in a chunk, E values in a head.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

ROPE_WAVELENGTH = 10_000.0  # SmolVLA's own, whatever its language model has; Gemma's


class Reading(NamedTuple):
    """What was read: keys and values of each layer, [B, P, heads, E], and which tokens are no padding, [B, P] bool.

    `state` [B, 1, expert width]: that of the robot, where the expert reads it and not the model.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    is_there: Tensor
    state: Tensor | None = None

    def repeated(self, count: int) -> Self:
        """Each row `count` times, one after the other."""
        if count == 1:
            return self
        layers = tuple(
            (key.repeat_interleave(count, 0), value.repeat_interleave(count, 0)) for key, value in self.layers
        )
        state = None if self.state is None else self.state.repeat_interleave(count, 0)
        return type(self)(layers, self.is_there.repeat_interleave(count, 0), state)


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions [B, n] of x [B, n, heads, E], on the pairs (i, i + E/2)."""
    half = x.shape[-1] // 2
    exponents = 2.0 / x.shape[-1] * torch.arange(half, dtype=torch.float32, device=x.device)
    angles = (positions[..., None].float() / ROPE_WAVELENGTH**exponents)[:, :, None]
    first, second = x.float().split(half, -1)
    turned = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
    return torch.cat(turned, -1).to(x.dtype)


def attended(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attention in float32: [B, Q, heads, E] over [B, S, fewer heads, E], visible [B, Q, S] bool -> [B, Q, heads * E]."""
    groups = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(groups, 2).transpose(1, 2) for x in (key, value))
    weights = query.float().transpose(1, 2) @ key.float().transpose(2, 3) * query.shape[-1] ** -0.5
    weights = weights.masked_fill(~visible[:, None], torch.finfo(torch.float32).min).softmax(-1)
    return (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)


def time_features(times: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """Sines and cosines [B, width] float64 of times [B], of periods spread evenly in their logarithm."""
    share = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=times.device)
    angles = 2 * math.pi / (min_period * (max_period / min_period) ** share) * times[:, None]
    return torch.cat([angles.sin(), angles.cos()], 1)
