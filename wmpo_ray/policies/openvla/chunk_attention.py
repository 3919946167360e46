"""Attention without a causal mask for the Llama of transformers, through its interface for attention functions."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig

from wmpo_ray.core.rounding import cosine, rounded, sine
from wmpo_ray.world_models.attention import attend

BIDIRECTIONAL = "wmpo_bidirectional"


def bidirectional_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Every query sees every key that `attention_mask` [B, 1, 1 or Q, S] bool shows, all of them without a mask.

    query [B, heads, Q, E], key and value [B, key heads, S, E] -> [B, Q, heads, E].
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if attention_mask is None:
        attended = attend(query, key, value)
    else:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.transpose(1, 2).contiguous(), None


def key_mask(lengths: Tensor, size: int) -> Tensor:
    """The first `lengths` [B] of `size` keys are seen: [B, 1, 1, size] bool, which transformers takes as it is."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None])[:, None, None]


class RotaryPositions(nn.Module):
    """In place of LlamaRotaryEmbedding, whose tables depend on the processor.

    It has no buffers: they would have no values after a load that begins on the meta device.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.width = config.hidden_size // config.num_attention_heads
        self.theta = config.rope_parameters["rope_theta"]

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids [B, S] -> cos and sin [B, S, E] in the dtype of x."""
        frequencies = torch.from_numpy(_rotary_frequencies(self.width, self.theta)).to(x.device)
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat([angles, angles], -1)
        return cosine(angles).to(x.dtype), sine(angles).to(x.dtype)


@functools.cache
def _rotary_frequencies(width: int, theta: float) -> np.ndarray:
    """1 / theta^(2 i / width) [width / 2] float32."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return np.float32(1) / rounded(lambda exponent: theta**exponent, exponents)


# Under a name that transformers has no mask function for, the model itself makes no mask, causal or other.
AttentionInterface.register(BIDIRECTIONAL, bidirectional_attention)
