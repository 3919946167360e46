"""The reward model: a VideoMAE classifier over clips of L frames; constant image planes encode the instruction."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.frame_sizes import FrameSize, check_patches, height_and_width
from wmpo_ray.core.rounding import rounded
from wmpo_ray.core.section import Count, Positive
from wmpo_ray.core.types import Scores
from wmpo_ray.core.untrusted import NetworkSettings, check_finite, check_network, read_settings
from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.reward_models.decisions import decide
from wmpo_ray.reward_models.equal_batches import in_equal_batches, instruction_planes
from wmpo_ray.reward_models.videomae_settings import NetworkRewardConfig

with lean():
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

SETTINGS_FILE = "reward_model.json"
MAX_POSITION_VALUES = 2**24  # of a clip: patches times width; they are computed, so no weight bounds their number


class _FileSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    instructions: tuple[str, ...]
    threshold: FiniteFloat
    image_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    image_std: Annotated[Positive, FiniteFloat]


class _NetworkSettings(NetworkSettings):
    hidden_size: Count
    num_hidden_layers: Count
    image_size: Count | tuple[Count, Count]
    patch_size: Count
    num_frames: Count
    tubelet_size: Count
    num_labels: Annotated[int, Field(ge=2, le=2**12)] = 2

    @property
    def num_layers_in_all(self) -> int:
        return self.num_hidden_layers


class VideoMAERewardModel:
    """Probability that a clip ends in success (implements `interfaces.RewardModel`).

    VideoMAE reads video only. Where a task has several instructions, each is one extra input plane, 1 for the
    instruction that was given and 0 elsewhere; with none, this is the published three-channel classifier.
    """

    def __init__(
        self,
        network: VideoMAEForVideoClassification,
        instructions: Sequence[str],
        threshold: float = 0.5,
        image_mean: Sequence[float] = (40.0, 44.0, 52.0),
        image_std: float = 64.0,
    ):
        self.network = network
        set_positions(network)
        self.instructions = tuple(instructions)
        self.threshold = threshold
        self.image_mean, self.image_std = tuple(image_mean), image_std
        self.clip_length = network.config.num_frames

    @classmethod
    def create(cls, config: NetworkRewardConfig, frame_size: FrameSize, instructions: Sequence[str], seed: int):
        """A fresh network of the configured size. Raises ConfigError for frames that its patches do not fit."""
        net = config.network
        check_patches(frame_size, net.patch_size, "reward.network.patch_size")
        settings = VideoMAEConfig(
            image_size=frame_size if isinstance(frame_size, int) else list(frame_size),
            patch_size=net.patch_size,
            num_channels=3 + len(instructions),
            num_frames=config.clip_length,
            tubelet_size=net.tubelet_size,
            hidden_size=net.hidden_size,
            num_hidden_layers=net.num_layers,
            num_attention_heads=net.num_heads,
            intermediate_size=int(net.hidden_size * net.mlp_ratio),
            hidden_act="silu",
            use_mean_pooling=True,
            num_labels=2,
            attn_implementation="eager",  # a few dozen tokens: faster than the fused kernel on a CPU
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = VideoMAEForVideoClassification(settings)
        return cls(network.eval(), instructions)

    def logits(self, clips: Tensor, instructions: Sequence[str]) -> Tensor:
        """clips [B, L, H, W, 3] uint8 or float in 0..255 -> logit of success [B]."""
        mean = torch.tensor(self.image_mean, device=clips.device)
        pixels = ((clips.float() - mean) / self.image_std).movedim(-1, 2)
        if self.instructions:
            planes = instruction_planes(instructions, self.instructions).to(clips.device)
            batch, length, _, height, width = pixels.shape
            planes = planes[:, None, :, None, None].expand(batch, length, -1, height, width)
            pixels = torch.cat([pixels, planes], 2)
        return self.network(pixel_values=pixels).logits[:, 1]

    clip_logits = logits  # differentiable: what it is trained by

    @torch.no_grad()
    def probabilities(self, videos: np.ndarray, instructions: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """videos [M, T+1, H, W, 3] -> probability [M, W] of each window of L frames, stride 1, W = T + 2 - L.

        A window's probability does not depend on what is judged beside it.
        """
        frames = torch.as_tensor(videos).to(self.network.device)
        windows = frames.unfold(1, self.clip_length, 1).movedim(-1, 2)  # [M, W, L, H, W, 3]
        num_videos, num_windows = windows.shape[:2]
        repeated = [text for text in instructions for _ in range(num_windows)]
        found = in_equal_batches(
            lambda clips, texts: self.logits(clips, texts).float().sigmoid(),
            windows.flatten(0, 1),
            repeated,
            batch_size,
        )
        return found.view(num_videos, num_windows).cpu().numpy()

    def decide(self, probabilities: np.ndarray, min_steps: int, horizon: int) -> Scores:
        return decide(probabilities, self.threshold, self.clip_length, min_steps, horizon)

    def save(self, path: str | Path) -> None:
        settings = {
            "instructions": self.instructions,
            "threshold": self.threshold,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
        }
        with atomic_directory(Path(path)) as folder:
            self.network.save_pretrained(folder, safe_serialization=True)
            (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> VideoMAERewardModel:
        """A folder that `save` wrote. Raises UserError where it is none, or is damaged."""
        folder = Path(path)
        settings = read_settings(folder / SETTINGS_FILE, _FileSettings)
        check_network(folder, "model", _NetworkSettings, _build, _name_in_file)
        network = VideoMAEForVideoClassification.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, attn_implementation="eager"
        )
        check_finite(network, folder)
        channels = 3 + len(settings.instructions)
        if network.config.num_channels != channels:
            raise UserError(
                f"{folder}: the network has {network.config.num_channels} input channels, {channels} are needed for "
                f"the {len(settings.instructions)} instructions in {SETTINGS_FILE}"
            )
        return cls(network.eval(), **settings.model_dump())


def set_positions(network: VideoMAEForVideoClassification) -> None:
    """Replace the network's position table, which transformers computes with kernels that depend on the processor."""
    embeddings = network.videomae.embeddings
    embeddings.position_embeddings = torch.from_numpy(_positions(embeddings.num_patches, network.config.hidden_size))


@functools.lru_cache(maxsize=2)
def _positions(count: int, width: int) -> np.ndarray:
    """Sinusoids [1, count, width] float32 of the angles p / 10000^(2 floor(j / 2) / width)."""
    divisors = np.array([10000.0 ** (2 * (j // 2) / width) for j in range(width)])
    angles = np.arange(count)[:, None] / divisors
    table = np.empty((1, count, width), np.float32)
    table[0, :, 0::2] = rounded(math.sin, angles[:, 0::2])
    table[0, :, 1::2] = rounded(math.cos, angles[:, 1::2])
    return table


def _name_in_file(name: str) -> str:
    """Published files have the names of an older transformers, and so do new ones."""
    return name.replace("attention.query.bias", "attention.q_bias").replace("attention.value.bias", "attention.v_bias")


def _build(settings: dict) -> VideoMAEForVideoClassification:
    config = VideoMAEConfig.from_dict(settings)
    height, width = height_and_width(config.image_size)
    patches = (height // config.patch_size) * (width // config.patch_size) * (config.num_frames // config.tubelet_size)
    values = patches * config.hidden_size
    if not 0 < values <= MAX_POSITION_VALUES:
        raise ValueError(
            f"{patches} patches of width {config.hidden_size}: at most {MAX_POSITION_VALUES} values are made"
        )
    return VideoMAEForVideoClassification(config)
