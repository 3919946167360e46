"""Training of the reward model on the policy's own rollouts, and the choice of its threshold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learners.training_state import NO_CHECKPOINTS, Parts, TrainingCheckpoints
from wmpo_ray.config import RewardConfig
from wmpo_ray.fidelity import binary_report
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.seeding import generator_for
from wmpo_ray.types import Episodes

Index = Tensor  # [n, 2] int64: episode, last frame of the clip


@dataclass(frozen=True)
class ClipIndex:
    """Which clips are positive, which are not (paper section 3.2)."""

    positive: Index  # last clip of a success
    negative: Index  # earlier clips of successes, any clip of failures


def index_clips(episodes: Episodes, clip_length: int, margin: int) -> ClipIndex:
    """Clips of `clip_length` frames by their last frame; successes give negatives up to `margin` before their end."""
    positive, negative = [], []
    for i, (length, success) in enumerate(zip(episodes.lengths, episodes.success, strict=True)):
        first = clip_length - 1
        if success and length >= first:
            positive.append((i, length))
        last = length - margin if success else length
        negative += [(i, end) for end in range(first, int(last) + 1)]
    return ClipIndex(_pairs(positive), _pairs(negative))


def _pairs(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)


class RewardTrainer:
    """Balanced batches of clips, binary cross-entropy.

    Where tasks share a scene and differ by instruction, some negatives are terminal clips with another instruction:
    they are what teaches the model to read it.
    """

    def __init__(self, model: VideoMAERewardModel, config: RewardConfig, episodes: Episodes, seed: int):
        self.model, self.config = model, config
        self.clips = index_clips(episodes, model.clip_length, config.success_margin)
        for name in ("positive", "negative"):
            if len(getattr(self.clips, name)) == 0:
                raise ValueError(
                    f"the {len(episodes)} episodes for the reward model hold no {name} clip "
                    f"({int(episodes.success.sum())} successes); collect more (collect.num_trajectories) or clone a "
                    "policy that both succeeds and fails (policy.cloning.steps)"
                )
        self.frames = torch.from_numpy(episodes.frames)
        self.instructions = episodes.instructions
        self.generator = generator_for(seed, "reward")
        self.optimizer = torch.optim.AdamW(
            model.network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )

    def step(self, step: int) -> float:
        config, generator = self.config, self.generator
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * (0.475 * (1 + math.cos(math.pi * step / config.steps)) + 0.05)
        half = config.batch_size // 2
        swapped = round(half * config.swapped_share) if len(self.model.instructions) > 1 else 0
        index = torch.cat(
            [
                self._draw(self.clips.positive, half),
                self._draw(self.clips.negative, half - swapped),
                self._draw(self.clips.positive, swapped),
            ]
        )
        label = torch.cat([torch.ones(half), torch.zeros(half)])
        texts = [self.instructions[i] for i in index[:, 0].tolist()]
        for i in range(2 * half - swapped, 2 * half):
            texts[i] = self._other_instruction(texts[i])
        offsets = torch.arange(1 - self.model.clip_length, 1)
        clips = self.frames[index[:, :1], index[:, 1:] + offsets].float()
        flip = torch.rand(len(clips), generator=generator) < 0.5
        clips = torch.where(flip.view(-1, 1, 1, 1, 1), clips.flip(2), clips)
        clips = clips + config.pixel_noise * torch.randn(clips.shape, generator=generator)
        loss = F.binary_cross_entropy_with_logits(self.model.logits(clips, texts), label)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def _draw(self, index: Index, count: int) -> Index:
        return index[torch.randint(len(index), (count,), generator=self.generator)]

    def _other_instruction(self, text: str) -> str:
        others = [other for other in self.model.instructions if other != text]
        return others[int(torch.randint(len(others), (), generator=self.generator))]


def train_reward_model(
    model: VideoMAERewardModel,
    config: RewardConfig,
    episodes: Episodes,
    seed: int,
    progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    checkpoints: TrainingCheckpoints = NO_CHECKPOINTS,
) -> dict[str, float]:
    """Train in place, from the newest checkpoint if there is one; returns the last smoothed loss and the seconds."""
    started = time.monotonic()
    trainer = RewardTrainer(model, config, episodes, seed)
    parts: Parts = {"network": model.network, "optimizer": trainer.optimizer, "generator": trainer.generator}
    first, numbers = checkpoints.restore(parts) or (0, {"loss": 0.0})
    model.network.train()
    for step in range(first, config.steps):
        loss = trainer.step(step)
        numbers["loss"] = loss if step == 0 else 0.95 * numbers["loss"] + 0.05 * loss
        progress(step + 1, {"loss": numbers["loss"]})
        checkpoints.save(step + 1, parts, numbers)
    model.network.eval()
    return {
        "loss": numbers["loss"],
        "seconds": time.monotonic() - started,
        "positive_clips": len(trainer.clips.positive),
        "negative_clips": len(trainer.clips.negative),
    }


def choose_threshold(best_probability: np.ndarray, success: np.ndarray) -> tuple[float, list[dict[str, float]]]:
    """The threshold that maximises F1 on held-out trajectories, and the whole curve.

    best_probability [M]: highest window probability of each trajectory. Among equals the middle of the widest run.
    """
    grid = np.round(np.linspace(0.02, 0.98, 97), 3)
    curve = []
    for threshold in grid:
        report = binary_report(best_probability >= threshold, success)
        true_positive = float((best_probability >= threshold)[success].sum())
        predicted = report["predicted_rate"] * report["num"]
        curve.append(
            {
                "threshold": float(threshold),
                "f1": report["f1"],
                "precision": true_positive / predicted if predicted else 1.0,
                "recall": true_positive / max(float(success.sum()), 1.0),
            }
        )
    f1 = np.array([point["f1"] for point in curve])
    runs = _equal_runs(np.flatnonzero(f1 >= f1.max() - 1e-9))
    widest = max(runs, key=len)
    return float(grid[widest[len(widest) // 2]]), curve


def _equal_runs(index: np.ndarray) -> Sequence[np.ndarray]:
    return np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)
