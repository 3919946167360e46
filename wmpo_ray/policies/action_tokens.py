"""Actions as tokens: every dimension of every action in a chunk becomes one of `num_bins` equal intervals of [-1, 1]."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor


def encode_actions(actions: Tensor, num_bins: int) -> Tensor:
    """Actions [..., D] in [-1, 1] (clipped) -> bin of each [..., D] int64 in [0, num_bins)."""
    return ((actions + 1) / 2 * num_bins).long().clamp(0, num_bins - 1)


def decode_tokens(tokens: Tensor, num_bins: int) -> Tensor:
    """Bins -> centres of their intervals, float32."""
    return bin_centres(num_bins).to(tokens.device)[tokens]


@functools.cache
def bin_centres(num_bins: int) -> Tensor:
    """Centres [num_bins] float32, in steps that are rounded to float32 each."""
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    return torch.from_numpy((np.arange(num_bins, dtype=np.float32) + half) / np.float32(num_bins) * two - one)


def sample_tokens(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token for each position by inverting the distribution function.

    logits [B, L, bins], uniform [B, L] in [0, 1) -> tokens [B, L] int64, their log-probabilities [B, L] at this
    temperature. Temperature 0 takes the likeliest token and gives its log-probability at temperature 1.
    """
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), -1)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        cumulative = logprobs.exp().cumsum(-1)
        # Scaled by its last value, so that rounding can never leave the range.
        tokens = (cumulative <= uniform[..., None] * cumulative[..., -1:]).sum(-1).clamp_max(logits.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens[..., None])[..., 0]


def executed_tokens(num_actions: Tensor, chunk_length: int, action_dim: int) -> Tensor:
    """Tokens [B, K*D] bool of the first `num_actions` [B] actions of each chunk; an action has D tokens."""
    steps = torch.arange(chunk_length, device=num_actions.device)
    return (steps[None] < num_actions[:, None]).repeat_interleave(action_dim, 1)
