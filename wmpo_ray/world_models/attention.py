"""Attention arithmetic of the video transformer: backend choice, per-head RMSNorm, rotary positions."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.rounding import cosine, rounded, sine

# "auto" decides at each call; the others are chosen once for a network.
Backend = Literal["auto", "flash", "sdpa", "plain"]
HALF_PRECISION = (torch.float16, torch.bfloat16)

# Below this many key positions a matrix product and a softmax beat the fused CPU kernel.
SHORT_SEQUENCE = 64


@functools.cache
def flash_attention():
    """The flash-attn function, or None where the optional package is not installed."""
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func


def choose_backend(wanted: Backend, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend for a network on `device` in `dtype`: flash-attn where it is installed and can be used, else SDPA.

    Raises ConfigError if `wanted` is unknown, or is flash-attn and cannot be used there.
    """
    usable = device.type == "cuda" and dtype in HALF_PRECISION
    if wanted == "auto":
        return "flash" if usable and flash_attention() else "sdpa"
    if wanted not in ("flash", "sdpa", "plain"):
        raise ConfigError(f"attention = {wanted!r}: known are auto, flash, sdpa and plain")
    if wanted == "flash" and not usable:
        raise ConfigError(f"attention = 'flash': needs bf16 or fp16 on a GPU, this is {dtype} on {device}; use 'auto'")
    if wanted == "flash" and not flash_attention():
        raise ConfigError("attention = 'flash': the package flash-attn is not installed; install wmpo-ray[gpu]")
    return wanted


def attend(
    query: Tensor, key: Tensor, value: Tensor, causal_offset: int | None = None, backend: Backend = "auto"
) -> Tensor:
    """Scaled dot-product attention over [B, heads, Q, E] and [B, heads, S, E] -> [B, heads, Q, E].

    With `causal_offset` o, query i sees keys 0..i+o (o = S-Q aligns the two ends; flash-attn knows only that one).
    """
    short = query.device.type == "cpu" and key.shape[2] <= SHORT_SEQUENCE
    if backend == "plain" or (backend == "auto" and short):
        return _plain_attention(query, key, value, causal_offset)
    aligned = causal_offset is None or causal_offset == key.shape[2] - query.shape[2]
    usable = query.is_cuda and aligned and query.dtype in HALF_PRECISION
    if usable and (backend == "flash" or (backend == "auto" and flash_attention())):
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return flash_attention()(q, k, v, causal=causal_offset is not None).transpose(1, 2)
    mask = None
    if causal_offset is not None:
        mask = _causal_mask(query.shape[2], key.shape[2], causal_offset, query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _causal_mask(queries: int, keys: int, offset: int, device) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(offset)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, causal_offset: int | None) -> Tensor:
    batch, heads, num_queries, width = query.shape
    num_keys = key.shape[2]
    q = (query * width**-0.5).reshape(batch * heads, num_queries, width)
    k = key.reshape(batch * heads, num_keys, width)
    weights = torch.bmm(q, k.transpose(1, 2))
    if causal_offset is not None:
        visible = _causal_mask(num_queries, num_keys, causal_offset, query.device)
        weights = weights.masked_fill(~visible, float("-inf"))
    weights = weights.softmax(-1).to(value.dtype)
    return torch.bmm(weights, value.reshape(batch * heads, num_keys, width)).view(query.shape)


class HeadRMSNorm(nn.Module):
    """Root-mean-square norm over the head dimension, computed in float32."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Rotary positions on interleaved pairs (0,1), (2,3), ...; `freqs` [E/2] is stored with the weights."""

    def __init__(self, head_width: int, theta: float = 10000.0):
        super().__init__()
        exponents = -np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
        freqs = rounded(lambda exponent: theta**exponent, exponents)
        self.freqs = nn.Parameter(torch.tensor(freqs.tolist()), requires_grad=False)

    def angles(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [length, E/2] for positions start..start+length-1."""
        positions = torch.arange(start, start + length, device=self.freqs.device, dtype=self.freqs.dtype)
        angles = positions[:, None] * self.freqs
        return cosine(angles), sine(angles)

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the pairs of x [..., T, E] by angles [T, E/2]."""
        pairs = x.unflatten(-1, (-1, 2))
        even, odd = pairs[..., 0], pairs[..., 1]
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
