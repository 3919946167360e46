"""Attention without a causal mask for the Llama of transformers, through its interface for attention functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

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


# Under a name that transformers has no mask function for, the model itself makes no mask, causal or other.
AttentionInterface.register(BIDIRECTIONAL, bidirectional_attention)
