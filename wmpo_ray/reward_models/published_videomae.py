"""The published reward model: a three-channel VideoMAE classifier, its files, and the reference's decision rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat
from safetensors.torch import save_file
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.section import Count, shown
from wmpo_ray.core.types import Scores
from wmpo_ray.core.untrusted import NetworkSettings, TensorSpec, read_json, read_settings, refuse_unread
from wmpo_ray.core.wording import counted
from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.model_files.weight_files import WeightFiles, find_weights, load_network
from wmpo_ray.reward_models.decisions import decide
from wmpo_ray.reward_models.preprocessing import PREPROCESSOR_FILE, FramePreprocessing
from wmpo_ray.reward_models.preprocessor_files import find_preprocessing
from wmpo_ray.reward_models.videomae import set_positions

with lean():
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

# VideoMAE-base as the reference trains it: settings that a bare file of weights does not contain.
IMAGE_SIZE, NUM_FRAMES, HEAD_WIDTH = 224, 8, 64
MAX_POSITION_VALUES = 2**24  # patches times width; positions are computed, so no weight bounds their number
NUM_LABELS = 2
NEUTRAL = ("dtype", "torch_dtype", "num_labels", "qkv_bias", "attn_implementation")  # compared elsewhere, or refused
# The older names are the published ones.
BIAS_NAMES = {"attention.query.bias": "attention.q_bias", "attention.value.bias": "attention.v_bias"}


THRESHOLD_FILE = "threshold.json"  # the published files have no place for it


class _SavedThreshold(BaseModel):
    model_config = ConfigDict(extra="forbid")
    threshold: FiniteFloat


class _Settings(NetworkSettings):
    image_size: Annotated[Count, BeforeValidator(lambda value: _one_side(value))]
    num_frames: Count
    num_attention_heads: Count


def _one_side(value: Any) -> Any:
    """Newer versions of transformers may have [height, width]."""
    if not isinstance(value, list):
        return value
    if len(value) != 2 or value[0] != value[1]:
        raise ValueError("only square frames are known")
    return value[0]


def published_names(name: str) -> tuple[str, ...]:
    """The names that a tensor of the network may have in a file, the published one first."""
    older = name
    for new, old in BIAS_NAMES.items():
        older = older.replace(new, old)
    return (older, name) if older != name else (name,)


class PublishedRewardModel:
    """Probability that a window of frames ends in success (implements `interfaces.RewardModel`).

    The score is the sigmoid of the second logit, as in the reference. It reads video only: instructions are ignored.
    """

    def __init__(
        self, network: VideoMAEForVideoClassification, preprocessing: FramePreprocessing, threshold: float = 0.5
    ):
        _check_crop(preprocessing, network.config)
        self.network = network
        set_positions(network)
        self.preprocessing = preprocessing
        self.threshold = threshold
        self.clip_length = network.config.num_frames
        self.instructions: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        path: str | Path,
        threshold: float | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> PublishedRewardModel:
        """A `.pth` file of the reference's, or a transformers folder. Raises UserError for anything else.

        `threshold` None: the one that `save` wrote beside the weights, 0.5 where there is none.
        """
        files = find_weights(path)
        config = published_config(files)
        network = load_network(
            files,
            lambda: VideoMAEForVideoClassification(config),
            names=published_names,
            dtype=dtype,
            device=device,
        )
        preprocessing = published_preprocessing(files, config)
        if threshold is None:
            saved = files.parts[0].parent / THRESHOLD_FILE
            threshold = read_settings(saved, _SavedThreshold).threshold if saved.is_file() else 0.5
        return cls(network, preprocessing, threshold)

    def pixels(self, videos: Tensor) -> Tensor:
        """videos [M, T, H, W, 3] uint8 -> [M, T, 3, S, S], normalised: each frame once, whatever windows it is in."""
        frames = videos.to(self.network.device).flatten(0, 1)
        return self.preprocessing(frames, self.network.dtype).unflatten(0, videos.shape[:2])

    @torch.no_grad()
    def logits(self, videos: np.ndarray | Tensor, batch_size: int = 64) -> Tensor:
        """videos [M, T, H, W, 3] uint8 -> logits [M, W, 2] float32 of each window of L frames, W = max(0, T + 1 - L)."""
        videos = torch.as_tensor(videos)
        num_videos, length = videos.shape[:2]
        num_windows = max(0, length + 1 - self.clip_length)
        if not num_videos * num_windows:
            return torch.zeros(num_videos, num_windows, self.network.config.num_labels)
        # Windows of all videos are views of the same pixels; only a batch of them is ever copied.
        windows = self.pixels(videos).unfold(1, self.clip_length, 1).movedim(-1, 2)
        index = torch.arange(num_videos * num_windows, device=windows.device)
        parts = [
            self.network(pixel_values=windows[rows // num_windows, rows % num_windows]).logits.float()
            for rows in index.split(batch_size)
        ]
        return torch.cat(parts).unflatten(0, (num_videos, num_windows))

    def clip_logits(self, clips: Tensor, instructions: Sequence[str] = ()) -> Tensor:
        """Differentiable logit of success [B] of clips [B, L, H, W, 3], float in about 0..255 or uint8."""
        return self.network(pixel_values=self.pixels(clips.round().clamp(0, 255).to(torch.uint8))).logits[:, 1]

    def probabilities(self, videos: np.ndarray, instructions: Sequence[str] = ()) -> np.ndarray:
        """videos [M, T, H, W, 3] uint8 -> probability [M, W] of each window of L frames, stride 1."""
        return self.logits(videos)[..., 1].sigmoid().cpu().numpy()

    def decide(self, probabilities: np.ndarray, min_steps: int, horizon: int) -> Scores:
        return decide_as_published(probabilities, self.threshold, self.clip_length, min_steps, horizon + 1)

    def save(self, path: str | Path) -> None:
        """Write a transformers folder with the published names (safetensors), and the threshold beside them."""
        weights = {published_names(name)[0]: t.contiguous() for name, t in self.network.state_dict().items()}
        with atomic_directory(Path(path)) as folder:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            self.network.config.save_pretrained(folder)
            (folder / PREPROCESSOR_FILE).write_text(json.dumps(self.preprocessing.to_file(), indent=1) + "\n")
            (folder / THRESHOLD_FILE).write_text(json.dumps({"threshold": self.threshold}) + "\n")


def decide_as_published(
    probabilities: np.ndarray, threshold: float, clip_length: int, min_steps: int, num_frames: int
) -> Scores:
    """The reference's rule on probabilities [M, W] of the windows of videos of `num_frames` frames.

    It differs from `scoring.decide` in two places: windows must end `clip_length` frames after `min_steps`, and the
    last window of a video never succeeds. A success finishes at the last frame of its window, a failure at the last
    frame of the video.
    """
    num_videos, num_windows = probabilities.shape
    if num_windows < 2:
        failed = np.full(num_videos, num_frames - 1, np.int64)
        return Scores(np.zeros(num_videos, bool), failed, np.full(num_videos, -1.0, np.float32))
    return decide(probabilities[:, :-1], threshold, clip_length, min_steps + clip_length - 1, num_frames - 1)


def published_config(files: WeightFiles) -> VideoMAEConfig:
    """The network of these weights, from a config.json beside them or, for a bare file, from their shapes."""
    sizes = _sizes_of(files.specs, files.path)
    path = files.parts[0].parent / "config.json"
    if path.is_file():
        checked, settings = read_settings(path, _Settings), read_json(path)
        refuse_unread(str(path), settings, (*VideoMAEConfig().to_dict(), *NEUTRAL))
        for name, size in _said(settings).items():
            if name in sizes and size != sizes[name]:
                raise UserError(f"{path}: {name} = {shown(size)}, the weights are of {sizes[name]}")
        settings = settings | {"image_size": checked.image_size} | sizes
    else:
        heads = max(1, sizes["hidden_size"] // HEAD_WIDTH)
        settings = sizes | {"image_size": IMAGE_SIZE, "num_frames": NUM_FRAMES, "num_attention_heads": heads}
    patches = (settings["image_size"] // sizes["patch_size"]) ** 2 * settings["num_frames"] // sizes["tubelet_size"]
    if not 0 < patches * sizes["hidden_size"] <= MAX_POSITION_VALUES:
        raise UserError(f"{files.path}: {patches} patches of width {sizes['hidden_size']} are too many for one clip")
    config = VideoMAEConfig(**{key: value for key, value in settings.items() if key not in ("num_labels", "id2label")})
    config.num_labels = sizes["num_labels"]
    return config


def published_preprocessing(files: WeightFiles, config: VideoMAEConfig) -> FramePreprocessing:
    """What the processor's file beside the weights asks for; without one, frames as large as the network sees."""
    folder, size = files.parts[0].parent, config.image_size
    preprocessing = find_preprocessing(folder) or FramePreprocessing(resize=size, crop=size)
    try:
        _check_crop(preprocessing, config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    return preprocessing


def _check_crop(preprocessing: FramePreprocessing, config: VideoMAEConfig) -> None:
    if config.image_size != preprocessing.crop:
        raise UserError(f"crop = {preprocessing.crop}, the network sees {config.image_size} pixels a side")


def _said(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of the sizes of the weights, under the names that we compare."""
    said = dict(settings)
    if isinstance(labels := said.get("id2label"), dict) and labels and said.get("num_labels", NUM_LABELS) == NUM_LABELS:
        said["num_labels"] = len(labels)
    if "qkv_bias" in said:  # the name in the reference's own code
        said["qv_bias"] = said["qkv_bias"]
    if isinstance(said.get("patch_size"), list) and len(set(said["patch_size"])) == 1:
        said["patch_size"] = said["patch_size"][0]
    return said


def _sizes_of(specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Any]:
    try:
        num_labels = specs["classifier.bias"].shape[0]
        if num_labels != NUM_LABELS:
            raise UserError(
                f"{path}: the classifier has {counted(num_labels, 'output')}, the score is the second of {NUM_LABELS} (failure, "
                "success); set reward.pretrained to a classifier with 2"
            )
        width, channels, tubelet, patch, _ = specs["videomae.embeddings.patch_embeddings.projection.weight"].shape
        return {
            "hidden_size": width,
            "num_channels": channels,
            "tubelet_size": tubelet,
            "patch_size": patch,
            "num_hidden_layers": sum(name.endswith(".layernorm_before.weight") for name in specs),
            "intermediate_size": specs["videomae.encoder.layer.0.intermediate.dense.weight"].shape[0],
            "use_mean_pooling": "fc_norm.weight" in specs,
            "num_labels": num_labels,
            "qv_bias": any(name.endswith((".q_bias", ".query.bias")) for name in specs),
        }
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path} holds no VideoMAE classifier: {error} is not as in one") from error
