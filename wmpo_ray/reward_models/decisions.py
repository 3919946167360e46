"""Videos to decisions: one rule that drives the score, the finish step and every metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wmpo_ray.core.interfaces import RewardModel
from wmpo_ray.core.types import Scores


def decide(probabilities: np.ndarray, threshold: float, clip_length: int, min_steps: int, horizon: int) -> Scores:
    """Success at the first window whose probability reaches the threshold.

    probabilities [M, W]; window w shows frames w .. w+L-1, so it ends after w+L-1 executed actions, which is the
    finish step. Windows that end before `min_steps` are not judged. A failure finishes at `horizon`.
    """
    ends = np.arange(probabilities.shape[1]) + clip_length - 1
    judged = np.where(ends[None] >= min_steps, probabilities, -1.0)
    passed: np.ndarray = np.asarray(judged >= threshold)
    success: np.ndarray = np.asarray(passed.any(1))
    finish_step = np.where(success, ends[passed.argmax(1)], horizon)
    return Scores(success, finish_step.astype(np.int64), judged.max(1).astype(np.float32))


def score_videos(model: RewardModel, videos: np.ndarray, instructions: Sequence[str], min_steps: int) -> Scores:
    """videos [M, T+1, H, W, 3] uint8 -> one decision each."""
    return model.decide(model.probabilities(videos, instructions), min_steps, videos.shape[1] - 1)


def best_probabilities(
    model: RewardModel, videos: np.ndarray, instructions: Sequence[str], lengths: np.ndarray, min_steps: int
) -> np.ndarray:
    """Highest probability [M] of a window that may decide, among those that end within `lengths` [M] steps.

    For recorded episodes, whose videos hold still after their end; a threshold chosen on these is one on decisions.
    """
    probabilities = model.probabilities(videos, instructions)
    ends = np.arange(probabilities.shape[1]) + model.clip_length - 1
    shown = np.where(ends[None] <= np.asarray(lengths)[:, None], probabilities, 0.0)
    return np.maximum(model.decide(shown, min_steps, videos.shape[1] - 1).probability, 0.0)
