"""A reward model of single frames: a vision transformer says of each whether it shows the success, and how far it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.frame_sizes import FrameSize, check_patches, height_and_width
from wmpo_ray.core.section import Count, Positive
from wmpo_ray.core.types import Scores
from wmpo_ray.core.untrusted import NetworkSettings, check_finite, check_network, read_settings
from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.reward_models.decisions import decide
from wmpo_ray.reward_models.equal_batches import in_equal_batches, instruction_planes
from wmpo_ray.reward_models.frame_settings import FrameRewardConfig

with lean():
    from transformers import ViTConfig, ViTForImageClassification

SETTINGS_FILE = "reward_model.json"
PROGRESS, SUCCESS = 0, 1  # places of the two outputs
FRAMES_PER_BATCH = 256
# The names of newer versions of transformers, and those that all of them write and read.
NAMES_IN_FILES = {
    "vit.layers.": "vit.encoder.layer.",
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}


class _FileSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["frame"]
    instructions: tuple[str, ...]
    threshold: FiniteFloat
    clip_length: Annotated[int, Field(ge=1, le=2**16)]
    knows_progress: bool
    image_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    image_std: Annotated[Positive, FiniteFloat]


class _NetworkSettings(NetworkSettings):
    hidden_size: Count
    num_hidden_layers: Count
    image_size: Count | tuple[Count, Count]
    patch_size: Count

    @property
    def num_layers_in_all(self) -> int:
        return self.num_hidden_layers


class FrameRewardModel:
    """Probability that `clip_length` frames in a row all show the success (implements `interfaces.RewardModel`).

    Each frame is seen once, whatever windows it is in. A window's probability is that of its least likely frame, so that
    it reaches the threshold where all of them do. The first frame of a video is no success, as nothing was done. Where
    a task has several instructions, each is one extra input plane, 1 for the instruction that was given and 0 elsewhere.
    """

    def __init__(
        self,
        network: ViTForImageClassification,
        instructions: Sequence[str],
        clip_length: int,
        threshold: float = 0.5,
        knows_progress: bool = False,
        image_mean: Sequence[float] = (40.0, 44.0, 52.0),
        image_std: float = 64.0,
    ):
        self.network = network
        self.instructions = tuple(instructions)
        self.clip_length, self.threshold, self.knows_progress = clip_length, threshold, knows_progress
        self.image_mean, self.image_std = tuple(image_mean), image_std

    @classmethod
    def create(cls, config: FrameRewardConfig, frame_size: FrameSize, instructions: Sequence[str], seed: int):
        """A fresh network of the configured size. Raises ConfigError for frames that its patches do not fit."""
        net = config.network
        check_patches(frame_size, net.patch_size, "reward.network.patch_size")
        settings = ViTConfig(
            image_size=list(height_and_width(frame_size)),
            patch_size=net.patch_size,
            num_channels=3 + len(instructions),
            hidden_size=net.hidden_size,
            num_hidden_layers=net.num_layers,
            num_attention_heads=net.num_heads,
            intermediate_size=int(net.hidden_size * net.mlp_ratio),
            hidden_act="silu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=2,
            attn_implementation="eager",  # a few dozen tokens: faster than the fused kernel on a CPU
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = ViTForImageClassification(settings)
        knows = config.progress_weight > 0
        return cls(network.eval(), instructions, config.clip_length, knows_progress=knows)

    def frame_logits(self, frames: Tensor, instructions: Sequence[str]) -> Tensor:
        """Differentiable logits [N, 2] of progress and success of frames [N, H, W, 3] uint8 or float in about 0..255."""
        mean = torch.tensor(self.image_mean, device=frames.device)
        pixels = ((frames.float() - mean) / self.image_std).movedim(-1, 1)
        if self.instructions:
            planes = instruction_planes(instructions, self.instructions).to(frames.device)
            pixels = torch.cat([pixels, planes[..., None, None].expand(-1, -1, *pixels.shape[-2:])], 1)
        return self.network(pixel_values=pixels).logits

    def clip_logits(self, clips: Tensor, instructions: Sequence[str]) -> Tensor:
        """Differentiable logit of success [B] of clips [B, L, H, W, 3]: that of the least likely frame."""
        length = clips.shape[1]
        texts = [text for text in instructions for _ in range(length)]
        return self.frame_logits(clips.flatten(0, 1), texts)[:, SUCCESS].view(-1, length).amin(1)

    def progress_logits(self, frames: Tensor, instructions: Sequence[str]) -> Tensor:
        """Differentiable logit of progress [N] of frames [N, H, W, 3]."""
        return self.frame_logits(frames, instructions)[:, PROGRESS]

    def probabilities(self, videos: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """videos [M, T+1, H, W, 3] -> probability [M, W] of each window of L frames, stride 1, W = T + 2 - L."""
        of_frames = self._outputs(videos, instructions)[..., SUCCESS]
        return np.lib.stride_tricks.sliding_window_view(of_frames, self.clip_length, axis=1).min(-1)

    def progress(self, videos: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """videos [M, T+1, H, W, 3] -> the share [M, T+1] of the way to the success that each frame shows.

        Raises ValueError for a model whose progress head was not trained.
        """
        if not self.knows_progress:
            raise ValueError("the progress head was not trained; set reward.progress_weight above 0")
        return self._outputs(videos, instructions)[..., PROGRESS]

    @torch.no_grad()
    def _outputs(self, videos: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """[M, T+1, 2] in 0..1 of each frame of videos, which does not depend on what is judged beside it."""
        frames = torch.as_tensor(np.ascontiguousarray(videos)).to(self.network.device)
        texts = [text for text in instructions for _ in range(frames.shape[1])]
        found = in_equal_batches(
            lambda part, said: self.frame_logits(part, said).float().sigmoid(),
            frames.flatten(0, 1),
            texts,
            FRAMES_PER_BATCH,
        )
        return found.view(*frames.shape[:2], 2).cpu().numpy()

    def decide(self, probabilities: np.ndarray, min_steps: int, horizon: int) -> Scores:
        return decide(probabilities, self.threshold, self.clip_length, max(min_steps, 1), horizon)

    def save(self, path: str | Path) -> None:
        settings = {
            "kind": "frame",
            "instructions": self.instructions,
            "threshold": self.threshold,
            "clip_length": self.clip_length,
            "knows_progress": self.knows_progress,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
        }
        with atomic_directory(Path(path)) as folder:
            self.network.save_pretrained(folder, safe_serialization=True)
            (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> FrameRewardModel:
        """A folder that `save` wrote. Raises UserError where it is none, or is damaged."""
        folder = Path(path)
        settings = read_settings(folder / SETTINGS_FILE, _FileSettings).model_dump(exclude={"kind"})
        check_network(folder, "model", _NetworkSettings, _build, _name_in_file)
        network = ViTForImageClassification.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, attn_implementation="eager"
        )
        check_finite(network, folder)
        channels = 3 + len(settings["instructions"])
        if network.config.num_channels != channels or network.config.num_labels != 2:
            raise UserError(
                f"{folder}: the network has {network.config.num_channels} input channels and "
                f"{network.config.num_labels} outputs, {channels} and 2 are needed for {SETTINGS_FILE}"
            )
        return cls(network.eval(), **settings)


def _name_in_file(name: str) -> str:
    for new, old in NAMES_IN_FILES.items():
        name = name.replace(new, old)
    return name


def _build(settings: dict) -> ViTForImageClassification:
    return ViTForImageClassification(ViTConfig.from_dict(settings))
