"""What the small policies share: image patches, instruction words, transformer layers, and their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.frame_sizes import height_and_width
from wmpo_ray.core.section import Count, Positive
from wmpo_ray.core.untrusted import (
    MAX_SETTINGS_BYTES,
    NetworkSettings,
    check_finite,
    check_network,
    read_json,
    read_settings,
)
from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.world_models.attention import attend

with lean():
    from transformers import PreTrainedModel

UNKNOWN_WORD = 0

KeysAndValues = tuple[Tensor, Tensor]  # [B, heads, tokens, E] each


class SmallFileSettings(NetworkSettings):
    """What a config.json may say; the bounds are for what no weight has the size of."""

    num_layers: Count
    patch_size: Count
    frame_size: Count | tuple[Count, Count] = 16
    max_words: Annotated[int, Field(ge=1, le=2**12)]
    vocabulary: list[str]
    image_mean: tuple[float, float, float]
    image_std: Positive

    @property
    def num_layers_in_all(self) -> int:
        return self.num_layers


class Layer(nn.Module):
    """A transformer layer; what came before may be given as its keys and values."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, int(width * mlp_ratio)), nn.SiLU(), nn.Linear(int(width * mlp_ratio), width)
        )

    def forward(self, x: Tensor, before: KeysAndValues | None = None) -> tuple[Tensor, KeysAndValues]:
        """x [B, tokens, width]; tokens see each other and those `before`. Returns them, and their own keys and values."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        own = key, value
        if before is not None:
            key, value = (torch.cat(pair, 2) for pair in zip(before, own, strict=True))
        attended = attend(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.output(attended)
        return x + self.mlp(self.norm_mlp(x)), own


class SmallPolicy(PreTrainedModel):
    """The encoder of a small policy, saved and loaded in the transformers style."""

    base_model_prefix = "policy"
    file_settings: ClassVar[type[SmallFileSettings]]
    _no_split_modules: ClassVar[list[str]] = ["Layer"]

    def __init__(self, config):
        super().__init__(config)
        self.chunk_length, self.action_dim = config.chunk_length, config.action_dim
        width, patch_values = config.width, 3 * config.patch_size**2
        height, width_in_pixels = height_and_width(config.frame_size)
        num_patches = (height // config.patch_size) * (width_in_pixels // config.patch_size)
        self.patch = nn.Sequential(nn.Linear(patch_values, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.patch_position = nn.Parameter(torch.randn(num_patches, width) * 0.3)
        self.words = nn.Embedding(len(config.vocabulary) + 1, width)
        self._word_index = {word: i + 1 for i, word in enumerate(config.vocabulary)}

    def make_layers(self) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(Layer(config.width, config.num_heads, config.mlp_ratio) for _ in range(config.num_layers))

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation is kept."""

    def embed(self, frames: Tensor, word_ids: Tensor) -> list[Tensor]:
        """frames [B, H, W, 3] uint8, word_ids [B, max_words] int64 -> tokens of patches and of words [B, n, width]."""
        mean = torch.tensor(self.config.image_mean, device=frames.device)
        pixels = (frames.float() - mean) / self.config.image_std
        size = self.config.patch_size
        patches = pixels.unflatten(1, (-1, size)).unflatten(3, (-1, size)).permute(0, 1, 3, 2, 4, 5)
        patches = patches.flatten(3).flatten(1, 2)
        return [self.patch(patches) + self.patch_position, self.words(word_ids)]

    def word_ids(self, instructions: Sequence[str]) -> Tensor:
        """Words of each instruction [B, max_words]; padding and unknown words share one embedding."""
        limit = self.config.max_words
        ids = torch.full((len(instructions), limit), UNKNOWN_WORD)
        for i, instruction in enumerate(instructions):
            words = instruction.lower().split()[:limit]
            ids[i, : len(words)] = torch.tensor([self._word_index.get(word, UNKNOWN_WORD) for word in words])
        return ids.to(self.device)

    # -- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def build_of(cls, folder: Path, num_tensors: int) -> Callable[[], Self]:
        """What makes the network of a folder's config.json. Raises UserError for more layers than there are tensors."""
        path = folder / "config.json"
        if (settings := read_settings(path, cls.file_settings)).num_layers > num_tensors:
            raise UserError(f"{path} declares {settings.num_layers} layers; the weights are {num_tensors} tensors")
        return lambda: cls(cls.config_class.from_dict(read_json(path, MAX_SETTINGS_BYTES)))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A folder that `save_pretrained` wrote. Raises UserError where it is none, or is damaged."""
        folder = Path(path)
        check_network(folder, "model", cls.file_settings, lambda settings: cls(cls.config_class.from_dict(settings)))
        network = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        check_finite(network, folder)
        return network


def vocabulary_of(instructions: Sequence[str]) -> list[str]:
    """Every word that occurs, sorted."""
    return sorted({word for instruction in instructions for word in instruction.lower().split()})
