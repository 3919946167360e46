"""A small vision-language-action policy: image patches, instruction words, and K*D action tokens decoded in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import ActionChunk
from wmpo_ray.core.section import Count, Positive
from wmpo_ray.core.seeding import keyed_noise, seed_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.core.untrusted import NetworkSettings, check_finite, check_network
from wmpo_ray.policies.action_tokens import decode_tokens, encode_actions, sample_tokens
from wmpo_ray.world_models.attention import attend

UNKNOWN_WORD = 0


class TinyPolicyHFConfig(PretrainedConfig):
    model_type = "wmpo_tiny_policy"

    def __init__(
        self,
        width: int = 96,
        num_layers: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        patch_size: int = 4,
        frame_size: int = 16,
        chunk_length: int = 4,
        action_dim: int = 3,
        num_bins: int = 256,
        num_bases: int = 24,
        vocabulary: Sequence[str] = (),
        max_words: int = 8,
        image_mean: Sequence[float] = (40.0, 44.0, 52.0),
        image_std: float = 64.0,
        **kwargs,
    ):
        self.width = width
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.patch_size = patch_size
        self.frame_size = frame_size
        self.chunk_length = chunk_length
        self.action_dim = action_dim
        self.num_bins = num_bins
        self.num_bases = num_bases
        self.vocabulary = list(vocabulary)
        self.max_words = max_words
        self.image_mean = list(image_mean)
        self.image_std = image_std
        super().__init__(**kwargs)


class _FileSettings(NetworkSettings):
    """What a config.json may say; the bounds are for what no weight has the size of."""

    num_layers: Count
    patch_size: Count
    num_bins: Annotated[int, Field(ge=2, le=2**16)]
    num_bases: Annotated[int, Field(ge=0, le=2**16)]
    max_words: Annotated[int, Field(ge=1, le=2**12)]
    vocabulary: list[str]
    image_mean: tuple[float, float, float]
    image_std: Positive

    @property
    def num_layers_in_all(self) -> int:
        return self.num_layers


class _Layer(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(*qkv.unbind(0)).transpose(1, 2).flatten(2)
        x = x + self.output(attended)
        return x + self.mlp(self.norm_mlp(x))


class TinyPolicy(PreTrainedModel):
    """Implements `wmpo_ray.core.interfaces.Policy`; saved and loaded in the transformers style.

    The bin logits of a dimension are sums of smooth bumps plus one free logit at each end: neighbouring bins mean
    neighbouring actions, and with few demonstrations independent bins overfit.
    """

    config_class = TinyPolicyHFConfig
    base_model_prefix = "policy"
    _no_split_modules: ClassVar[list[str]] = ["_Layer"]

    def __init__(self, config: TinyPolicyHFConfig):
        super().__init__(config)
        width, patch_values = config.width, 3 * config.patch_size**2
        self.chunk_length, self.action_dim = config.chunk_length, config.action_dim
        num_patches = (config.frame_size // config.patch_size) ** 2
        self.patch = nn.Sequential(nn.Linear(patch_values, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.patch_position = nn.Parameter(torch.randn(num_patches, width) * 0.3)
        self.words = nn.Embedding(len(config.vocabulary) + 1, width)
        self.queries = nn.Parameter(torch.randn(config.chunk_length * config.action_dim, width) * 0.5)
        self.layers = nn.ModuleList(_Layer(width, config.num_heads, config.mlp_ratio) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        num_outputs = config.num_bases + 2 if config.num_bases else config.num_bins
        self.heads = nn.Parameter(torch.randn(config.action_dim, width, num_outputs) * width**-0.5)
        self._word_index = {word: i + 1 for i, word in enumerate(config.vocabulary)}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation is kept."""

    @classmethod
    def create(cls, config: Config, demos: Episodes) -> Self:
        """A fresh network of the sizes in `policy.network`, for the frames, actions and words of the demonstrations.

        Its weights follow from the run's seed. Raises ConfigError for a kind that has no fresh network.
        """
        if config.policy.kind != "tiny":
            raise ConfigError(
                f'policy.kind = "{config.policy.kind}" has no fresh network; set policy.pretrained to the folder of one'
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(config.seed, "policy"))
            return cls(
                TinyPolicyHFConfig(
                    **config.policy.network.model_dump(),
                    frame_size=demos.frames.shape[2],
                    chunk_length=config.rollout.chunk_length,
                    action_dim=demos.actions.shape[-1],
                    vocabulary=vocabulary_of(demos.instructions),
                )
            )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A folder that `save_pretrained` wrote. Raises UserError where it is none, or is damaged."""
        folder = Path(path)
        check_network(folder, "model", _FileSettings, lambda settings: cls(TinyPolicyHFConfig.from_dict(settings)))
        network = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        check_finite(network, folder)
        return network

    # -- the network ---------------------------------------------------------------------------------------------

    def forward(self, frames: Tensor, word_ids: Tensor) -> Tensor:
        """frames [B, H, W, 3] uint8, word_ids [B, max_words] int64 -> bin logits [B, K*D, bins]."""
        mean = torch.tensor(self.config.image_mean, device=frames.device)
        pixels = (frames.float() - mean) / self.config.image_std
        size = self.config.patch_size
        patches = pixels.unflatten(1, (-1, size)).unflatten(3, (-1, size)).permute(0, 1, 3, 2, 4, 5)
        patches = patches.flatten(3).flatten(1, 2)
        tokens = torch.cat(
            [self.patch(patches) + self.patch_position, self.words(word_ids), self.queries.expand(len(frames), -1, -1)],
            1,
        )
        for layer in self.layers:
            tokens = layer(tokens)
        answers = self.norm(tokens[:, -len(self.queries) :])
        answers = answers.unflatten(1, (self.chunk_length, self.action_dim))
        outputs = torch.einsum("bkdw,dwo->bkdo", answers, self.heads).flatten(1, 2)
        return outputs @ self._basis(outputs.device) if self.config.num_bases else outputs

    def _basis(self, device: torch.device) -> Tensor:
        """Bumps [num_bases + 2, bins] that bin logits are summed from; the last two are the outermost bins."""
        bins, bases = self.config.num_bins, self.config.num_bases
        centres = (torch.arange(bases, device=device) + 0.5) / bases * bins - 0.5
        distance = (torch.arange(bins, device=device)[None] - centres[:, None]) / (bins / bases * 0.8)
        ends = torch.zeros(2, bins, device=device)
        ends[0, 0] = ends[1, -1] = 1
        return 2 * torch.cat([torch.exp(-0.5 * distance**2), ends])

    def word_ids(self, instructions: Sequence[str]) -> Tensor:
        """Words of each instruction [B, max_words]; padding and unknown words share one embedding."""
        limit = self.config.max_words
        ids = torch.full((len(instructions), limit), UNKNOWN_WORD)
        for i, instruction in enumerate(instructions):
            words = instruction.lower().split()[:limit]
            ids[i, : len(words)] = torch.tensor([self._word_index.get(word, UNKNOWN_WORD) for word in words])
        return ids.to(self.device)

    # -- the policy protocol -------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, frames: np.ndarray, instructions: Sequence[str], temperature: float, seeds: list[int]) -> ActionChunk:
        logits = self(torch.as_tensor(frames).to(self.device), self.word_ids(instructions))
        uniform = keyed_noise(seeds, (logits.shape[1],), uniform=True).to(self.device)
        tokens, logprobs = sample_tokens(logits, temperature, uniform)
        actions = decode_tokens(tokens, self.config.num_bins).unflatten(1, (self.chunk_length, self.action_dim))
        return ActionChunk(tokens.cpu(), logprobs.cpu(), actions.cpu())

    def log_prob(self, frames: np.ndarray, instructions: Sequence[str], tokens: Tensor, temperature: float) -> Tensor:
        logits = self(torch.as_tensor(frames).to(self.device), self.word_ids(instructions))
        logprobs = F.log_softmax(logits / temperature, -1)
        return logprobs.gather(-1, tokens.to(self.device)[..., None])[..., 0]

    def cloning_loss(self, frames: np.ndarray, instructions: Sequence[str], actions: Tensor) -> Tensor:
        logits = self(torch.as_tensor(frames).to(self.device), self.word_ids(instructions))
        target = encode_actions(actions.to(self.device), self.config.num_bins)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def vocabulary_of(instructions: Sequence[str]) -> list[str]:
    """Every word that occurs, sorted."""
    return sorted({word for instruction in instructions for word in instruction.lower().split()})
