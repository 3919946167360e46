"""The two vision towers of OpenVLA, DINOv2 and SigLIP, with the parameter names that timm gave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.world_models.attention import attend

with lean():
    from transformers.modeling_layers import GradientCheckpointingLayer

NORM_EPS = 1e-6


class TowerSizes(NamedTuple):
    """`num_registers` extra tokens, a class token and layer scales belong to DINOv2, the attention pool to SigLIP."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    patch_size: int = 14
    num_registers: int = 0
    class_token: bool = False
    layer_scale: bool = False
    attention_pool: bool = False


KNOWN_TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerSizes(
        1024, 24, 16, 4.0, num_registers=4, class_token=True, layer_scale=True
    ),
    "vit_so400m_patch14_siglip_224": TowerSizes(1152, 27, 16, 3.7362, attention_pool=True),
    "vit_so400m_patch14_siglip_384": TowerSizes(1152, 27, 16, 3.7362, attention_pool=True),
}
CHANGEABLE_SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size")


def tower_sizes(timm_model_id: str, overrides: Mapping[str, Any]) -> TowerSizes:
    """Sizes of a published tower, with some of `CHANGEABLE_SIZES` replaced. Raises ValueError for unknown names."""
    if timm_model_id not in KNOWN_TOWERS:
        raise ValueError(f"timm_model_ids has {timm_model_id!r}; known are {sorted(KNOWN_TOWERS)}")
    if unknown := sorted(overrides.keys() - set(CHANGEABLE_SIZES)):
        raise ValueError(f"timm_overrides has {unknown[0]!r}; known are {list(CHANGEABLE_SIZES)}")
    sizes = KNOWN_TOWERS[timm_model_id]._replace(**overrides)
    if min(sizes[:5]) <= 0 or sizes.depth < 2 or sizes.embed_dim % sizes.num_heads:
        raise ValueError(
            f"a vision tower of depth {sizes.depth}, width {sizes.embed_dim} and {sizes.num_heads} heads: the depth "
            "must be at least 2 and the width a multiple of the heads; change timm_overrides"
        )
    return sizes


class _PatchEmbed(nn.Module):
    def __init__(self, sizes: TowerSizes):
        super().__init__()
        self.proj = nn.Conv2d(3, sizes.embed_dim, sizes.patch_size, sizes.patch_size)


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(*qkv.unbind(0)).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, mlp_ratio: float):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class VisionBlock(GradientCheckpointingLayer):
    """A pre-norm transformer block, [B, N, D] -> [B, N, D]."""

    def __init__(self, sizes: TowerSizes):
        super().__init__()
        width = sizes.embed_dim
        self.norm1 = nn.LayerNorm(width, NORM_EPS)
        self.attn = _Attention(width, sizes.num_heads)
        self.ls1 = _LayerScale(width) if sizes.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, NORM_EPS)
        self.mlp = _Mlp(width, sizes.mlp_ratio)
        self.ls2 = _LayerScale(width) if sizes.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _AttentionPool(nn.Module):
    """SigLIP's pooling: never computed here, but its weights are part of the checkpoint."""

    def __init__(self, sizes: TowerSizes):
        super().__init__()
        width = sizes.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.mlp = _Mlp(width, sizes.mlp_ratio)


class VisionTower(nn.Module):
    """Patch features of the second-to-last block, without the final norm: [B, 3, h, w] -> [B, patches, D].

    The last block, the final norm and the attention pool only keep their weights. Raises ValueError for an image size
    that is not a multiple of the patch size.
    """

    def __init__(self, sizes: TowerSizes, image_size: tuple[int, int]):
        super().__init__()
        if image_size[0] % sizes.patch_size or image_size[1] % sizes.patch_size:
            raise ValueError(f"image_sizes={list(image_size)} are no multiples of the patch size {sizes.patch_size}")
        self.num_patches = (image_size[0] // sizes.patch_size) * (image_size[1] // sizes.patch_size)
        width = sizes.embed_dim
        if sizes.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if sizes.num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, sizes.num_registers, width))
        self.pos_embed = nn.Parameter(torch.randn(1, self.num_patches, width) * 0.02)
        self.patch_embed = _PatchEmbed(sizes)
        self.blocks = nn.ModuleList(VisionBlock(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width, NORM_EPS)
        if sizes.attention_pool:
            self.attn_pool = _AttentionPool(sizes)
        self._prefix_names = [name for name in ("cls_token", "reg_token") if hasattr(self, name)]

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + self.pos_embed
        prefix = [getattr(self, name).expand(len(x), -1, -1) for name in self._prefix_names]
        x = torch.cat([*prefix, x], 1)
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, -self.num_patches :]


class VisionBackbone(nn.Module):
    """Both towers on their own channels: [B, 6, h, w] -> [B, patches, D1 + D2]."""

    def __init__(self, towers: tuple[TowerSizes, TowerSizes], image_size: tuple[int, int]):
        super().__init__()
        self.featurizer = VisionTower(towers[0], image_size)
        self.fused_featurizer = VisionTower(towers[1], image_size)

    def forward(self, pixels: Tensor) -> Tensor:
        first, second = pixels.split(3, 1)
        return torch.cat([self.featurizer(first), self.fused_featurizer(second)], -1)


class Projector(nn.Module):
    """Vision features into the width of the language model."""

    def __init__(self, vision_width: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))
