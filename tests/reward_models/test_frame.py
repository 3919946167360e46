"""The reward model of single frames: windows of its frames, first frames, training, progress."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.supervised.frame_training import ProgressTrainer
from learners.supervised.loop import WorkerShare, train_network
from learners.supervised.training_state import NO_CHECKPOINTS
from tests.support.implementations import make_frame_reward_model
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.types import Episodes
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.reward_models.frame import FrameRewardModel
from wmpo_ray.reward_models.frame_settings import FrameRewardConfig
from wmpo_ray.reward_models.progress_report import progress_report

CONFIG = FrameRewardConfig.model_validate(
    {
        "network": {"hidden_size": 16, "num_layers": 1, "num_heads": 2},
        "steps": 120,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "progress_weight": 1.0,
        "success_margin": 1,
    }
)


def make_episodes(count: int = 24, steps: int = 8) -> Episodes:
    """A scene that brightens with time; a success ends in green. Odd episodes fail, in the dark."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 20, (count, steps + 1, 8, 8, 3)).astype(np.uint8)
    success = np.arange(count) % 2 == 0
    for t in range(steps + 1):
        frames[success, t, :, :, 0] += np.uint8(25 * t)
    frames[success, -1, :, :, 1] = 250
    zeros = np.zeros((count, steps, 3), np.float32)
    return Episodes(frames, zeros, np.full(count, steps), success, ("go",) * count, np.arange(count))


@pytest.fixture(scope="module")
def trained() -> FrameRewardModel:
    model = FrameRewardModel.create(CONFIG, 8, (), seed=0)
    train_network(ProgressTrainer(model, CONFIG, make_episodes(), 0), lambda step, metrics: None, NO_CHECKPOINTS)
    return model


def test_a_window_is_as_likely_as_its_least_likely_frame():
    videos = np.random.default_rng(0).integers(0, 255, (2, 7, 16, 16, 3)).astype(np.uint8)
    one, three = (make_frame_reward_model(length).probabilities(videos, INSTRUCTIONS) for length in (1, 3))
    assert one.shape == (2, 7) and three.shape == (2, 5)
    assert np.array_equal(three, np.minimum(np.minimum(one[:, :-2], one[:, 1:-1]), one[:, 2:]))
    model = make_frame_reward_model(3)
    with torch.no_grad():
        logits = model.clip_logits(torch.from_numpy(videos[:, 1:4]), INSTRUCTIONS)
    np.testing.assert_allclose(logits.sigmoid().numpy(), three[:, 1], atol=1e-6)


def test_so_many_frames_in_a_row_must_reach_the_threshold():
    model = make_frame_reward_model(2)
    of_frames = np.array([[0.0, 0.9, 0.1, 0.9, 0.9, 0.0]])
    windows = np.minimum(of_frames[:, :-1], of_frames[:, 1:])
    scores = model.decide(windows, 0, 5)
    assert scores.success.all() and scores.finish_step.tolist() == [4], "frame 4 is the second in a row"


def test_the_first_frame_is_no_success():
    scores = make_frame_reward_model().decide(np.array([[0.9, 0.1, 0.1], [0.9, 0.1, 0.9]]), 0, 2)
    assert scores.success.tolist() == [False, True] and scores.finish_step.tolist() == [2, 2]


def test_it_learns_the_outcome_and_how_far_a_success_has_come(trained):
    episodes = make_episodes()
    best = trained.probabilities(episodes.frames, episodes.instructions)[:, 1:].max(1)
    assert ((best > 0.5) == episodes.success).mean() > 0.95
    found = trained.progress(episodes.frames, episodes.instructions)[episodes.success]
    assert np.abs(found - np.arange(9) / 8).mean() < 0.15
    report = progress_report(trained, [episodes])
    assert report["order_correlation"] > 0.95
    assert len(report["success"]) == len(report["failure"]) == 11
    assert report["success"][-1] - report["success"][0] > 0.5


def test_progress_is_that_of_the_episode_and_not_of_the_frames_after_its_end():
    class Clock:
        """Says the number of the frame, and falls once the episode is over."""

        knows_progress = True

        def progress(self, videos, instructions):
            return np.tile(np.array([0.0, 0.25, 0.5, 0.75, 1.0, 0.1, 0.0, 0.0, 0.0]), (len(videos), 1))

    report = progress_report(Clock(), [replace(make_episodes(4), lengths=np.full(4, 4))])
    assert report["order_correlation"] == pytest.approx(1.0)
    np.testing.assert_allclose(report["success"], np.linspace(0, 1, 11), atol=1e-9)


def test_every_rank_trains_on_its_share_of_the_same_batch():
    episodes, parts = make_episodes(), []
    for share in (WorkerShare(), WorkerShare(0, 2), WorkerShare(1, 2)):
        trainer = ProgressTrainer(FrameRewardModel.create(CONFIG, 8, (), 0), CONFIG, episodes, 0, share)
        rows, total = trainer.inputs(trainer.draw())
        assert total == 16
        parts.append(rows)
    for whole, first, second in zip(*parts, strict=True):
        if isinstance(whole, torch.Tensor):
            assert torch.equal(whole, torch.cat([first, second]))
        else:
            assert list(whole) == [*first, *second]


def test_what_is_not_supported_is_refused(tmp_path, trained):
    with pytest.raises(ConfigError, match=r"reward.shaping=0.1: .* set reward.shaping to 0"):
        load_config("smoke", ["reward.kind=frame", "reward.shaping=0.1"])
    with pytest.raises(ValueError, match="set reward.progress_weight above 0"):
        make_frame_reward_model().progress(np.zeros((1, 2, 16, 16, 3), np.uint8), INSTRUCTIONS[:1])
    trained.save(tmp_path / "model")
    (tmp_path / "model" / "reward_model.json").write_text('{"instructions": [], "threshold": 0.5}')
    with pytest.raises(UserError, match="reward_model.json is damaged"):
        FrameRewardModel.load(tmp_path / "model")
