"""Trains a reward model of single frames whose second output is progress."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from learners.supervised.reward_training import ClipBatch, Index, RewardTrainer
from wmpo_ray.data.windows import frames_at
from wmpo_ray.reward_models.frame_settings import FrameRewardConfig

if TYPE_CHECKING:
    from wmpo_ray.reward_models.frame import FrameRewardModel


class FrameBatch(NamedTuple):
    """A batch of clips, and for each of its rows a frame on the way to a success, [B, 2]: episode, frame."""

    clips: ClipBatch
    frames: Index


class ProgressTrainer(RewardTrainer):
    """Trains the progress head beside the classifier, on frames of successes: the share of the way that lies behind.

    The target of frame t of a success after T steps is t / T, as in Ma et al. 2024 (GVL, arXiv 2411.04549), section 3.
    How far a failure has come is unknown, so none is trained on. A batch is `FrameBatch`.
    """

    model: FrameRewardModel

    @cached_property
    def _lengths(self) -> dict[int, int]:
        return dict(self.clips.positive.tolist())

    def draw(self) -> FrameBatch:  # type: ignore[override]
        clips = super().draw()
        last = self._draw(self.clips.positive, len(clips.clips))
        place = torch.rand(len(last), generator=self.generator)
        frame = (place * (last[:, 1] + 1)).long().clamp(max=last[:, 1])
        return FrameBatch(clips, torch.stack([last[:, 0], frame], 1))

    def inputs(self, batch: FrameBatch) -> tuple[tuple, int]:  # type: ignore[override]
        rows, total = super().inputs(batch.clips)
        index = batch.frames[self.share.of(total)]
        frames = frames_at(self.frames, index[:, :1], index[:, 1:]).float()
        drawn = self.augmentation.draw(total, self.share, self.generator)
        frames = self.augmentation.frames(frames, drawn, rows=2)[:, 0]
        noise = torch.randn((total, *frames.shape[1:]), generator=self.generator)[self.share.of(total)]
        target = torch.tensor([t / self._lengths[i] for i, t in index.tolist()])
        texts = [self.instructions[i] for i in index[:, 0].tolist()]
        return (*rows, frames + self.config.pixel_noise * noise, texts, target), total

    def _clip_loss(  # type: ignore[override]
        self,
        clips: Tensor,
        texts: Sequence[str],
        labels: Tensor,
        frames: Tensor,
        frame_texts: Sequence[str],
        target: Tensor,
    ) -> Tensor:
        assert isinstance(self.config, FrameRewardConfig)
        loss = super()._clip_loss(clips, texts, labels)
        found = self.model.progress_logits(frames.to(self.device), frame_texts)
        return loss + self.config.progress_weight * F.binary_cross_entropy_with_logits(found, target.to(self.device))
