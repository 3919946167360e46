"""The VideoMAE reward model against the published scores and decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.npz_files import load_npz
from wmpo_ray.core.untrusted import read_json
from wmpo_ray.model_files.weight_files import find_weights, load_network
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.parity.fixture_files import compared, differing, fixture_tensors, read_config
from wmpo_ray.reward_models.preprocessing import FramePreprocessing
from wmpo_ray.reward_models.published_videomae import PublishedRewardModel, decide_as_published, published_names

PIXELS, SCORES = 1e-6, 1e-5
MAX_VIDEO_BYTES = 2**30


def check(folder: Path) -> list[ParityCase]:
    """Pixels and logits of all windows, and every decision."""
    model = _load(folder)
    data = fixture_tensors(folder / "scores.safetensors", "logits_all_windows", "score_sigmoid_logit1")
    videos = load_npz(folder / "videos.npz", ["videos"], MAX_VIDEO_BYTES)["videos"]
    logits = model.logits(videos)
    scores = logits[..., 1].sigmoid()
    cases = [
        compared("scores", "logits_all_windows", logits, data["logits_all_windows"], SCORES),
        compared("scores", "score_sigmoid_logit1", scores, data["score_sigmoid_logit1"], SCORES),
    ]
    if "pixel_values_first_window" in data:
        first = model.pixels(torch.as_tensor(videos[:1, : model.clip_length]))[0]
        cases.insert(
            0, compared("scores", "pixel_values_first_window", first, data["pixel_values_first_window"], PIXELS)
        )
    for i, decision in enumerate(read_json(folder / "decisions.json")):
        cases += _decision(f"decision {i}, T = {decision['T']}", decision, scores.numpy(), model.clip_length)
    return cases


def _load(folder: Path) -> PublishedRewardModel:
    config = VideoMAEConfig(**{k: v for k, v in read_config(folder).items() if k != "num_labels"})
    config.num_labels = read_config(folder).get("num_labels", 2)
    network = load_network(
        find_weights(folder / "model.safetensors"),
        lambda: VideoMAEForVideoClassification(config),
        names=published_names,
    )
    steps = read_json(folder / "preprocess.json")
    try:
        preprocessing = FramePreprocessing(
            resize=steps["size_shortest_edge"],
            crop=steps["crop"],
            rescale=steps["rescale"],
            mean=tuple(steps["mean"]),
            std=tuple(steps["std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'preprocess.json'} is damaged: {error}") from error
    return PublishedRewardModel(network, preprocessing)


def _decision(name: str, decision: dict[str, Any], scores: np.ndarray, clip_length: int) -> list[ParityCase]:
    """Scores of a video cut to T frames are those of its first windows."""
    rows = [decision["video"]] if "video" in decision else range(len(scores))
    length = decision["T"]
    cut = scores[list(rows), : max(0, length + 1 - clip_length)]
    ours = decide_as_published(cut, decision["threshold"], clip_length, decision["min_steps"], length)
    success, finish = torch.tensor(decision["complete"]).bool(), torch.tensor(decision["finish_step"])
    return [
        differing(name, "complete", torch.as_tensor(ours.success), success),
        differing(name, "finish_step", torch.as_tensor(ours.finish_step), finish),
    ]
