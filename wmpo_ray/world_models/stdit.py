"""STDiT3: the action-conditioned video diffusion transformer of WMPO (paper section 3.1, Open-Sora backbone).

Blocks alternate attention within a frame and causal attention along time. Every frame is modulated by its action and
the diffusion time; conditioning frames carry a constant diffusion time and no action. Their keys and values therefore
depend neither on the denoising step nor on the actions, and `encode_conditioning` computes them once per chunk.
The network knows no schedule: it maps latents and a time to an output of the same layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.world_models.attention import Backend, RotaryEmbedding, choose_backend
from wmpo_ray.world_models.stdit_blocks import (
    ActionEmbedder,
    Block,
    FinalLayer,
    KeyValue,
    Mlp,
    PatchEmbedder,
    TimestepEmbedder,
    spatial_positions,
)

with lean():
    from diffusers.models.modeling_utils import ModelMixin

# The sizes of the published world models: 1,213M parameters, of which 305M take no part.
PRESETS = {
    "XL/2": {"hidden_size": 1152, "depth": 28, "num_heads": 16, "patch_size": (1, 2, 2), "mlp_ratio": 4.0},
}
DEAD_PREFIXES, DEAD_PART = ("y_embedder.", "fps_embedder."), ".cross_attn."


def is_dead(name: str) -> bool:
    """Whether a tensor of a published file takes no part in the computation."""
    return name.startswith(DEAD_PREFIXES) or DEAD_PART in name


@dataclass(frozen=True)
class ConditioningCache:
    """Keys and values of the conditioning frames, one entry for each temporal block, and their number."""

    blocks: tuple[KeyValue, ...]
    num_frames: int


class UnusedCaptionEmbedder(nn.Module):
    """Caption parameters of the published checkpoints; WMPO gives no text to the world model."""

    def __init__(self, channels: int, width: int, length: int):
        super().__init__()
        self.y_proj = Mlp(channels, width, "gelu_tanh")
        self.y_proj.fc2 = nn.Linear(width, width)
        self.register_buffer("y_embedding", torch.zeros(length, channels))


def _check_width(hidden_size: int, num_heads: int) -> None:
    if hidden_size % num_heads or (hidden_size // num_heads) % 2 or hidden_size % 4:
        raise ValueError(
            f"hidden_size={hidden_size}, num_heads={num_heads}: the width must be a multiple of 4 and of twice the number "
            "of heads; set world_model.network"
        )


class STDiT(ModelMixin, ConfigMixin):
    """Spatio-temporal diffusion transformer.

    Sizes: `hidden_size` D, `depth` pairs of a spatial and a temporal block, `num_heads`. `pad_action_num` frames at
    the start carry no action. `pred_sigma` doubles the output channels (the second half is unused). The options from
    `mlp_activation` on do not exist in the published weights and are off by default.
    """

    _repeated_blocks: ClassVar = ["Block"]  # what `compile_repeated_blocks` gives to torch.compile

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        in_channels: int = 4,
        action_dim: int = 7,
        pad_action_num: int = 4,
        qk_norm: bool = True,
        pred_sigma: bool = True,
        input_sq_size: int = 512,
        conditioning_timestep: float = 15.0,
        caption_channels: int = 4096,
        model_max_length: int = 300,
        keep_unused_parameters: bool = False,
        mlp_activation: str = "gelu_tanh",
        gate: str = "plain",
        per_block_modulation: bool = False,
        out_channels: int | None = None,
    ):
        super().__init__()
        _check_width(hidden_size, num_heads)
        width = hidden_size
        self.patch_size = (patch_size[0], patch_size[1], patch_size[2])  # a list when it comes from a file
        self.out_channels = out_channels or (in_channels * 2 if pred_sigma else in_channels)
        self.x_embedder = PatchEmbedder(in_channels, width, self.patch_size)
        self.t_embedder = TimestepEmbedder(width)
        self.action_embedder = ActionEmbedder(action_dim, width, pad_action_num)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Identity() if per_block_modulation else nn.Linear(width, 6 * width))
        self.rope = RotaryEmbedding(width // num_heads)
        self.spatial_blocks = nn.ModuleList(Block(self.config, temporal=False) for _ in range(depth))
        self.temporal_blocks = nn.ModuleList(Block(self.config, temporal=True) for _ in range(depth))
        pt, ph, pw = self.patch_size
        self.final_layer = FinalLayer(width, pt * ph * pw * self.out_channels)
        if keep_unused_parameters:
            self.fps_embedder = TimestepEmbedder(width)
            self.y_embedder = UnusedCaptionEmbedder(caption_channels, width, model_max_length)

    @classmethod
    def from_preset(cls, name: str, **changes) -> STDiT:
        """A fresh network of one of the sizes in `PRESETS`. Raises ConfigError for another name."""
        if name not in PRESETS:
            raise ConfigError(f"world model {name!r} is unknown; known are {sorted(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def choose_attention(self, wanted: Backend = "auto") -> Backend:
        """Settle the attention backend for the device and dtype the network has now, and return it."""
        chosen = choose_backend(wanted, self.device, self.dtype)
        for block in [*self.spatial_blocks, *self.temporal_blocks]:
            block.attn.backend = chosen
        return chosen

    # -- the three ways through the network ----------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        actions: Tensor,
        x_mask: Tensor,
        height: float | None = None,
        width: float | None = None,
    ) -> Tensor:
        """Whole clip at once.

        x [B, C, T, H, W]; timestep [B] in 0..1000 (1000 is pure noise); actions [B, T-pad, A] in [-1, 1] for the
        frames after the first `pad_action_num`; x_mask [B, T] bool, True where a frame is being denoised, False
        where it conditions; height, width in pixels (default: the latent's own). Returns [B, C_out, T, H, W] float32.
        """
        time, conditioning_time = self._times(timestep)
        by_action = self.t_block(time[:, None] + self.action_embedder(actions))
        by_time = self.t_block(time)[:, None].expand_as(by_action)
        constant = self.t_block(conditioning_time)[:, None]
        spatial = torch.where(x_mask[:, :, None], by_action, constant)
        temporal = torch.where(x_mask[:, :, None], by_time, constant)
        tokens = self._embed(x, height, width)
        for space, time_block in self._pairs():
            tokens, _ = time_block(space(tokens, spatial, self.rope)[0], temporal, self.rope)
        return self._unpatchify(self.final_layer(tokens, time, conditioning_time, x_mask), x.shape)

    def encode_conditioning(self, x: Tensor, height: float | None = None, width: float | None = None):
        """Keys and values of the conditioning frames x [B, C, c, H, W], valid for every step and every action."""
        batch, frames = x.shape[0], x.shape[2]
        conditioning_time = self._times(x.new_zeros(batch))[1]
        modulation = self.t_block(conditioning_time)[:, None].expand(batch, frames, -1)
        tokens, blocks = self._embed(x, height, width), []
        for space, time_block in self._pairs():
            tokens, (key, value) = time_block(space(tokens, modulation, self.rope)[0], modulation, self.rope)
            # The values are a view of queries, keys and values together: a copy lets the rest go.
            blocks.append(KeyValue(key, value.contiguous()))
        return ConditioningCache(tuple(blocks), frames)

    def forward_cached(
        self,
        x: Tensor,
        timestep: Tensor,
        actions: Tensor,
        cache: ConditioningCache,
        height: float | None = None,
        width: float | None = None,
    ) -> Tensor:
        """The denoised frames only: x [B, C, K, H, W], actions [B, c+K-pad, A] as in `forward` -> [B, C_out, K, H, W].

        Equals `forward` on the frames after the conditioning ones.
        """
        time, conditioning_time = self._times(timestep)
        embedded = self.action_embedder(actions)[:, cache.num_frames :]
        by_action = self.t_block(time[:, None] + embedded)
        by_time = self.t_block(time)[:, None].expand_as(by_action)
        tokens = self._embed(x, height, width)
        for (space, time_block), past in zip(self._pairs(), cache.blocks, strict=True):
            tokens, _ = time_block(space(tokens, by_action, self.rope)[0], by_time, self.rope, past)
        return self._unpatchify(self.final_layer(tokens, time, conditioning_time, None), x.shape)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _times(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        constant = torch.full_like(timestep, self.config.conditioning_timestep)
        return self.t_embedder(timestep.to(self.dtype)), self.t_embedder(constant.to(self.dtype))

    def _embed(self, x: Tensor, height: float | None, width: float | None) -> Tensor:
        _, ph, pw = self.patch_size
        rows, columns = x.shape[-2] // ph, x.shape[-1] // pw
        area = (height or x.shape[-2]) * (width or x.shape[-1])
        scale = math.sqrt(area) / self.config.input_sq_size
        base = round(math.sqrt(rows * columns))
        with torch.inference_mode(False):  # the table is cached and may serve a later backward pass
            positions = spatial_positions(self.config.hidden_size, rows, columns, scale, base, x.device)
        tokens = self.x_embedder(x.to(self.dtype))
        return tokens + positions.to(tokens.dtype)

    def _pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """A block of attention within frames and the one of attention over time behind it."""
        return zip(self.spatial_blocks, self.temporal_blocks, strict=True)

    def _unpatchify(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        batch, _, frames, height, width = shape
        pt, ph, pw = self.patch_size
        x = tokens.reshape(batch, frames // pt, height // ph, width // pw, pt, ph, pw, self.out_channels)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(batch, self.out_channels, frames, height, width).float()
