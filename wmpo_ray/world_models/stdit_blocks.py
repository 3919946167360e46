"""Building blocks of STDiT3: embedders, the spatial and temporal block, the final layer."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo_ray.core.rounding import cosine, rounded, sine
from wmpo_ray.world_models.attention import Backend, HeadRMSNorm, RotaryEmbedding, attend

ACTIVATIONS = {"gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}


class KeyValue(NamedTuple):
    """Keys and values of the conditioning frames in one temporal block: [B*P, heads, c, E] each."""

    key: Tensor
    value: Tensor


@functools.cache
def timestep_frequencies(count: int) -> Tensor:
    """exp(-ln(1e4) * i / count) [count] float32.

    A time of 1000 magnifies a wrong last bit beyond the published tolerance. Of the 128 published values one, index 12,
    lies 0.02 units from a rounding tie; the reference rounds it up, so it is rounded up here.
    """
    exponents = np.float32(-math.log(10000.0)) * np.arange(count, dtype=np.float32) / np.float32(count)
    freqs = rounded(math.exp, exponents)
    if count == 128:
        freqs[12] = np.nextafter(freqs[12], np.float32(1))
    return torch.from_numpy(freqs)


class TimestepEmbedder(nn.Module):
    """Sinusoid of the diffusion time (cos first), then linear-SiLU-linear: [B] -> [B, D]."""

    def __init__(self, width: int, num_frequencies: int = 256):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(num_frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.num_frequencies = num_frequencies

    def forward(self, timestep: Tensor) -> Tensor:
        freqs = timestep_frequencies(self.num_frequencies // 2).to(timestep.device)
        angles = timestep[:, None].float() * freqs
        return self.mlp(torch.cat([cosine(angles), sine(angles)], -1).to(next(self.mlp.parameters()).dtype))


class ActionEmbedder(nn.Module):
    """Actions [B, N, A] -> [B, pad+N, D]; the first `pad` frames get the learned `none_action`."""

    def __init__(self, action_dim: int, width: int, pad: int):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(action_dim, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.none_action = nn.Embedding(1, width)
        self.pad = pad

    def forward(self, actions: Tensor) -> Tensor:
        none = self.none_action.weight.expand(actions.shape[0], self.pad, -1)
        embedded = self.fc(actions.to(self.none_action.weight.dtype))
        return torch.cat([none.to(embedded.dtype), embedded], 1)


class PatchEmbedder(nn.Module):
    """Latents [B, C, T, H, W] -> tokens [B, T, P, D]."""

    def __init__(self, in_channels: int, width: int, patch: tuple[int, int, int]):
        super().__init__()
        self.proj = nn.Conv3d(in_channels, width, kernel_size=patch, stride=patch)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        # Kernel equals stride: a linear map of each patch, much faster than a 3-D convolution on a CPU.
        batch, channels, frames, height, width = x.shape
        pt, ph, pw = self.patch
        x = x.reshape(batch, channels, frames // pt, pt, height // ph, ph, width // pw, pw)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(2, 3)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, qk_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.backend: Backend = "auto"
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        head_width = width // num_heads
        self.q_norm = HeadRMSNorm(head_width) if qk_norm else nn.Identity()
        self.k_norm = HeadRMSNorm(head_width) if qk_norm else nn.Identity()

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, S, D] -> q, k, v [B, heads, S, E], q and k normalised."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def output(self, x: Tensor) -> Tensor:
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class UnusedCrossAttention(nn.Module):
    """Parameters of the published checkpoints that take no part in the computation."""

    def __init__(self, width: int):
        super().__init__()
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)


class Block(nn.Module):
    """AdaLN block over tokens [B, T, P, D]: attention within a frame (spatial) or along time (temporal, causal)."""

    def __init__(self, config, temporal: bool):
        super().__init__()
        width = config.hidden_size
        self.temporal = temporal
        self.attn = Attention(width, config.num_heads, config.qk_norm)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), config.mlp_activation)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.modulation = nn.Linear(width, 6 * width) if config.per_block_modulation else None
        self.gate_offset = 1.0 if config.gate == "one_plus" else 0.0
        if config.keep_unused_parameters:
            self.cross_attn = UnusedCrossAttention(width)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rope: RotaryEmbedding,
        past: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue | None]:
        """x [B, T, P, D], modulation [B, T, 6D or D] -> new x and, for a temporal block, keys and values of x."""
        if self.modulation is not None:
            modulation = self.modulation(modulation)
        width = x.shape[-1]
        table = self.scale_shift_table + modulation.unflatten(-1, (6, width))
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = table[:, :, None].unbind(3)
        y = modulate(layer_norm(x), shift, scale)
        y, present = self._temporal(y, rope, past) if self.temporal else (self._spatial(y), None)
        x = x + (gate + self.gate_offset) * y
        y = self.mlp(modulate(layer_norm(x), shift_mlp, scale_mlp))
        return x + (gate_mlp + self.gate_offset) * y, present

    def _spatial(self, x: Tensor) -> Tensor:
        batch, frames, patches, width = x.shape
        q, k, v = self.attn.query_key_value(x.reshape(batch * frames, patches, width))
        return self.attn.output(attend(q, k, v, backend=self.attn.backend)).view(batch, frames, patches, width)

    def _temporal(self, x: Tensor, rope: RotaryEmbedding, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        batch, frames, patches, width = x.shape
        q, k, v = self.attn.query_key_value(x.transpose(1, 2).reshape(batch * patches, frames, width))
        start = past.key.shape[2] if past is not None else 0
        cos, sin = rope.angles(start, frames)
        q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
        present = KeyValue(k, v)
        if past is not None:
            k, v = torch.cat([past.key.to(k.dtype), k], 2), torch.cat([past.value.to(v.dtype), v], 2)
        y = self.attn.output(attend(q, k, v, causal_offset=start, backend=self.attn.backend))
        return y.view(batch, patches, frames, width).transpose(1, 2), present


class FinalLayer(nn.Module):
    """Modulated LayerNorm and a linear map to patches: [B, T, P, D] -> [B, T, P, pt*ph*pw*C_out]."""

    def __init__(self, width: int, out_features: int):
        super().__init__()
        self.linear = nn.Linear(width, out_features)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x: Tensor, time: Tensor, conditioning_time: Tensor, x_mask: Tensor | None) -> Tensor:
        """time, conditioning_time [B, D]; x_mask [B, T] True where denoised (None: everywhere)."""
        x = self._modulate(x, time)
        if x_mask is not None:
            # The published network modulates conditioning frames twice here; its outputs there are unused.
            x = torch.where(x_mask[:, :, None, None], x, self._modulate(x, conditioning_time))
        return self.linear(x)

    def _modulate(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + time[:, None]).unbind(1)
        return modulate(layer_norm(x), shift[:, None, None], scale[:, None, None])


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


@functools.lru_cache(maxsize=16)
def spatial_positions(width: int, rows: int, columns: int, scale: float, base: int, device) -> Tensor:
    """2-D sin/cos embedding [rows*columns, D]; the first half of D encodes the column, the second the row."""
    quarter = width // 4
    exponents = np.arange(0, -2 * quarter, -2, dtype=np.float32) / np.float32(width // 2)
    freqs = rounded(lambda exponent: 10000.0**exponent, exponents)

    def axis(count: int) -> Tensor:
        grid = np.arange(count, dtype=np.float32) / np.float32(scale) * np.float32(base / count)
        angles = grid[:, None] * freqs
        return torch.from_numpy(np.concatenate([rounded(math.sin, angles), rounded(math.cos, angles)], -1)).to(device)

    column = axis(columns)[None].expand(rows, -1, -1)
    row = axis(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], -1).reshape(rows * columns, width)
