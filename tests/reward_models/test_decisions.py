"""One decision for score, finish step and metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from wmpo_ray.core.types import Scores
from wmpo_ray.reward_models.decisions import best_probabilities, decide, score_videos
from wmpo_ray.reward_models.published_videomae import decide_as_published


def test_the_first_window_that_passes_decides():
    probabilities = np.array([[0.1, 0.7, 0.9, 0.2], [0.1, 0.2, 0.3, 0.4]])
    scores = decide(probabilities, threshold=0.6, clip_length=3, min_steps=0, horizon=5)
    assert scores.success.tolist() == [True, False]
    # Window 1 shows frames 1..3: three actions were executed when it ends.
    assert scores.finish_step.tolist() == [3, 5]
    np.testing.assert_allclose(scores.probability, [0.9, 0.4], rtol=1e-6)


def test_windows_that_end_too_early_are_not_judged():
    probabilities = np.array([[0.9, 0.1, 0.9]])
    early = decide(probabilities, 0.5, clip_length=2, min_steps=0, horizon=4)
    late = decide(probabilities, 0.5, clip_length=2, min_steps=2, horizon=4)
    assert early.finish_step.tolist() == [1] and late.finish_step.tolist() == [3]


def test_the_last_window_counts_and_ends_at_the_horizon():
    scores = decide(np.array([[0.0, 0.0, 1.0]]), 0.5, clip_length=2, min_steps=0, horizon=3)
    assert scores.success.tolist() == [True] and scores.finish_step.tolist() == [3]


class Recorded:
    """A reward model that says what it was told to."""

    clip_length, threshold = 3, 0.6

    def __init__(self, probabilities: list[list[float]], rule) -> None:
        self.said, self.rule = np.array(probabilities, np.float32), rule

    def probabilities(self, videos: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        return self.said

    def decide(self, probabilities: np.ndarray, min_steps: int, horizon: int) -> Scores:
        return self.rule(probabilities, self.threshold, self.clip_length, min_steps, horizon)


def published(probabilities, threshold, clip_length, min_steps, horizon) -> Scores:
    return decide_as_published(probabilities, threshold, clip_length, min_steps, horizon + 1)


@pytest.mark.parametrize("rule", [decide, published])
@pytest.mark.parametrize("min_steps", [0, 3])
def test_the_best_probability_passes_exactly_where_the_decision_does(rule, min_steps):
    """Whatever the rule of the model: a threshold chosen on best probabilities is one on decisions."""
    said = np.random.default_rng(0).random((200, 6)).tolist()
    model, videos = Recorded(said, rule), np.zeros((200, 8, 1, 1, 3), np.uint8)
    best = best_probabilities(model, videos, [""] * 200, np.full(200, 7), min_steps)
    scores = score_videos(model, videos, [""] * 200, min_steps)
    assert scores.success.any() and not scores.success.all()
    assert ((best >= model.threshold) == scores.success).all()


def test_windows_that_show_what_came_after_the_end_do_not_count():
    model = Recorded([[0.1, 0.2, 0.9, 0.3]], decide)
    videos = np.zeros((1, 6, 1, 1, 3), np.uint8)
    for length, expected in ((5, 0.9), (4, 0.9), (3, 0.2), (1, 0.0)):
        assert best_probabilities(model, videos, [""], np.array([length]), 0) == pytest.approx([expected])
