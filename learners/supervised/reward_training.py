"""Trains the reward model on the policy's own rollouts, and chooses its threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learners.supervised.changed_scenes import NO_AUGMENTATION, Augmentation
from learners.supervised.loop import WHOLE, Progress, SupervisedTraining, WorkerShare, train_network
from learners.supervised.training_state import NO_CHECKPOINTS, Parts, TrainingCheckpoints
from wmpo_ray.config.run import RewardConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.seeding import generator_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.windows import frames_at
from wmpo_ray.environments.layout import FrameLayout

Index = Tensor  # [n, 2] int64: episode, last frame of the clip


class TrainableRewardModel(Protocol):
    """The interface of a trainable reward model, in addition to `interfaces.RewardModel`."""

    network: nn.Module
    clip_length: int
    instructions: tuple[str, ...]  # the instructions it distinguishes

    def clip_logits(self, clips: Tensor, instructions: Sequence[str]) -> Tensor:
        """Differentiable logit of success [B] of clips [B, L, H, W, 3], float in about 0..255."""


@dataclass(frozen=True)
class ClipIndex:
    """Positive and negative clips (paper section 3.2)."""

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


def clips_to_learn(config: RewardConfig, episodes: Episodes) -> ClipIndex:
    """Raises UserError if there are only positives or only negatives."""
    clips = index_clips(episodes, config.clip_length, config.success_margin)
    for name in ("positive", "negative"):
        if len(getattr(clips, name)) == 0:
            raise UserError(
                f"the {len(episodes)} episodes for the reward model hold no {name} clip "
                f"({int(episodes.success.sum())} successes); collect more (collect.num_trajectories) or clone a "
                "policy that both succeeds and fails (policy.cloning.steps)"
            )
    return clips


class ClipBatch(NamedTuple):
    clips: Index
    texts: list[str]
    labels: Tensor  # [B] float32: 1 for a success


class RewardTrainer(SupervisedTraining):
    """Balanced batches of clips, binary cross-entropy.

    Where tasks share a scene and differ by instruction, some negatives are terminal clips with another instruction:
    they are what teaches the model to read it. A batch is `ClipBatch`.
    """

    def __init__(
        self,
        model: TrainableRewardModel,
        config: RewardConfig,
        episodes: Episodes,
        seed: int,
        share: WorkerShare = WHOLE,
        augmentation: FrameLayout = NO_AUGMENTATION,
    ):
        self.model, self.config, self.augmentation = model, config, Augmentation(augmentation)
        self.clips = clips_to_learn(config, episodes)
        self.frames, self.instructions = episodes.frames, episodes.instructions
        optimizer = torch.optim.AdamW(
            model.network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        generator = generator_for(seed, "reward")
        super().__init__(model.network, self._clip_loss, optimizer, generator, config, "reward", share)

    @property
    def parts(self) -> Parts:
        return {"network": self.network, "optimizer": self.optimizer, "generator": self.generator}

    def learning_rate_factor(self) -> float:
        return 0.475 * (1 + math.cos(math.pi * self.num_steps / self.config.steps)) + 0.05

    def draw(self) -> ClipBatch:
        half = self.config.batch_size // 2
        swapped = round(half * self.config.swapped_share) if len(self.model.instructions) > 1 else 0
        index = torch.cat(
            [
                self._draw(self.clips.positive, half),
                self._draw(self.clips.negative, half - swapped),
                self._draw(self.clips.positive, swapped),
            ]
        )
        texts = [self.instructions[i] for i in index[:, 0].tolist()]
        for i in range(2 * half - swapped, 2 * half):
            texts[i] = self._other_instruction(texts[i])
        return ClipBatch(index, texts, torch.cat([torch.ones(half), torch.zeros(half)]))

    def inputs(self, batch: ClipBatch) -> tuple[tuple, int]:
        """Clips [n, L, H, W, 3] float in about 0..255, augmented, with instructions and labels [n]."""
        total, generator = len(batch.clips), self.generator
        own = self.share.of(total)
        index = batch.clips[own]
        steps = index[:, 1:] + torch.arange(1 - self.model.clip_length, 1)
        clips = frames_at(self.frames, index[:, :1], steps).float()
        clips = self.augmentation.frames(clips, self.augmentation.draw(total, self.share, generator), rows=2)
        noise = torch.randn((total, *clips.shape[1:]), generator=generator)[own]
        return (clips + self.config.pixel_noise * noise, batch.texts[own], batch.labels[own]), total

    def update(self, loss: float) -> dict[str, float]:
        self.optimizer.step()
        return {"loss": self.smooth(loss)}

    def metrics(self) -> dict[str, float]:
        """The last smoothed loss, and the number of training clips."""
        return {
            "loss": self.numbers["loss"],
            "positive_clips": len(self.clips.positive),
            "negative_clips": len(self.clips.negative),
        }

    def _clip_loss(self, clips: Tensor, texts: Sequence[str], labels: Tensor) -> Tensor:
        device = self.device
        return F.binary_cross_entropy_with_logits(self.model.clip_logits(clips.to(device), texts), labels.to(device))

    def _draw(self, index: Index, count: int) -> Index:
        return index[torch.randint(len(index), (count,), generator=self.generator)]

    def _other_instruction(self, text: str) -> str:
        others = [other for other in self.model.instructions if other != text]
        return others[int(torch.randint(len(others), (), generator=self.generator))]


def train_reward_model(
    model: TrainableRewardModel,
    config: RewardConfig,
    episodes: Episodes,
    seed: int,
    progress: Progress = lambda step, metrics: None,
    checkpoints: TrainingCheckpoints = NO_CHECKPOINTS,
    share: WorkerShare = WHOLE,
) -> dict[str, float]:
    """Train in place, resuming from the newest checkpoint if any; returns the last smoothed loss and the seconds."""
    return train_network(RewardTrainer(model, config, episodes, seed, share), progress, checkpoints)
