"""A small vision-language-action policy: image patches, instruction words, and K*D action tokens decoded in parallel."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from wmpo_ray.core.frame_sizes import FrameSize
from wmpo_ray.core.interfaces import Decision, Seeds
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.rounding import rounded
from wmpo_ray.core.seeding import keyed_noise
from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.policies.action_tokens import decode_tokens, encode_actions, executed_tokens, sample_tokens
from wmpo_ray.policies.small_policy import SmallFileSettings, SmallPolicy, vocabulary_of

with lean():
    from transformers import PretrainedConfig

__all__ = ["TinyPolicy", "TinyPolicyHFConfig", "bump_basis", "vocabulary_of"]


class TinyPolicyHFConfig(PretrainedConfig):
    model_type = "wmpo_tiny_policy"

    def __init__(
        self,
        width: int = 96,
        num_layers: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        patch_size: int = 4,
        frame_size: FrameSize = 16,
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
        self.frame_size = frame_size if isinstance(frame_size, int) else list(frame_size)
        self.chunk_length = chunk_length
        self.action_dim = action_dim
        self.num_bins = num_bins
        self.num_bases = num_bases
        self.vocabulary = list(vocabulary)
        self.max_words = max_words
        self.image_mean = list(image_mean)
        self.image_std = image_std
        super().__init__(**kwargs)


class _FileSettings(SmallFileSettings):
    num_bins: Annotated[int, Field(ge=2, le=2**16)]
    num_bases: Annotated[int, Field(ge=0, le=2**16)]


class TinyPolicy(SmallPolicy):
    """Implements `wmpo_ray.core.interfaces.Policy`; saved and loaded in the transformers style.

    The bin logits of a dimension are sums of smooth bumps plus one free logit at each end: neighbouring bins mean
    neighbouring actions, and with few demonstrations independent bins overfit.
    """

    config_class = TinyPolicyHFConfig
    file_settings: ClassVar[type[SmallFileSettings]] = _FileSettings

    def __init__(self, config: TinyPolicyHFConfig):
        super().__init__(config)
        width = config.width
        self.queries = nn.Parameter(torch.randn(config.chunk_length * config.action_dim, width) * 0.5)
        self.layers = self.make_layers()
        self.norm = nn.LayerNorm(width)
        num_outputs = config.num_bases + 2 if config.num_bases else config.num_bins
        self.heads = nn.Parameter(torch.randn(config.action_dim, width, num_outputs) * width**-0.5)
        self.post_init()

    # -- the network ---------------------------------------------------------------------------------------------

    def forward(self, frames: Tensor, word_ids: Tensor) -> Tensor:
        """frames [B, H, W, 3] uint8, word_ids [B, max_words] int64 -> bin logits [B, K*D, bins]."""
        tokens = torch.cat([*self.embed(frames, word_ids), self.queries.expand(len(frames), -1, -1)], 1)
        for layer in self.layers:
            tokens, _ = layer(tokens)
        answers = self.norm(tokens[:, -len(self.queries) :])
        answers = answers.unflatten(1, (self.chunk_length, self.action_dim))
        outputs = torch.einsum("bkdw,dwo->bkdo", answers, self.heads).flatten(1, 2)
        if not self.config.num_bases:
            return outputs
        return outputs @ bump_basis(self.config.num_bins, self.config.num_bases).to(outputs.device)

    # -- the policy protocol -------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observation: Observation, temperature: float, seeds: list[int]) -> Decision:
        logits = self._logits(observation)
        uniform = keyed_noise(seeds, (logits.shape[1],), uniform=True).to(self.device)
        tokens, logprobs = sample_tokens(logits, temperature, uniform)
        actions = decode_tokens(tokens, self.config.num_bins).unflatten(1, (self.chunk_length, self.action_dim))
        return Decision(actions.cpu(), {"tokens": tokens.cpu()}, logprobs.cpu())

    def log_prob(self, observation: Observation, record: dict[str, Tensor], temperature: float) -> Tensor:
        logprobs = F.log_softmax(self._logits(observation) / temperature, -1)
        return logprobs.gather(-1, record["tokens"].to(self.device)[..., None])[..., 0]

    def executed(self, num_actions: Tensor) -> Tensor:
        return executed_tokens(num_actions, self.chunk_length, self.action_dim)

    def cloning_loss(self, observation: Observation, actions: Tensor, seeds: Seeds = None) -> Tensor:
        target = encode_actions(actions.to(self.device), self.config.num_bins)
        return F.cross_entropy(self._logits(observation).flatten(0, 1), target.flatten())

    def encode(self, actions: Tensor) -> dict[str, Tensor]:
        return {"tokens": encode_actions(actions, self.config.num_bins).flatten(1).cpu()}

    def _logits(self, observation: Observation) -> Tensor:
        """[B, K*D, bins], from the main camera alone."""
        return self(torch.as_tensor(observation.frames).to(self.device), self.word_ids(observation.instructions))


@functools.cache
def bump_basis(num_bins: int, num_bases: int) -> Tensor:
    """Bumps [num_bases + 2, num_bins] that bin logits are summed from; the last two are the outermost bins."""
    centres = (np.arange(num_bases) + 0.5) / num_bases * num_bins - 0.5
    distance = (np.arange(num_bins) - centres[:, None]) / (num_bins / num_bases * 0.8)
    ends = np.zeros((2, num_bins), np.float32)
    ends[0, 0] = ends[1, -1] = 1
    basis = 2 * np.concatenate([rounded(math.exp, -0.5 * distance * distance), ends])
    with torch.inference_mode(False):  # it is cached and may serve a later backward pass
        return torch.from_numpy(basis)
