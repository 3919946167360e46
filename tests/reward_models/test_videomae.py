"""The reward model: windows, instruction planes, training and threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learners.supervised.reward_training import RewardTrainer, index_clips, train_reward_model
from tests.support.coloured_episodes import TEXTS, make_episodes
from wmpo_ray.core.errors import UserError
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import VideoMAERewardConfig

CONFIG = VideoMAERewardConfig.model_validate(
    {
        "network": {"hidden_size": 16, "num_layers": 1, "num_heads": 2},
        "steps": 160,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "swapped_share": 0.4,
    }
)


@pytest.fixture(scope="module")
def trained() -> VideoMAERewardModel:
    model = VideoMAERewardModel.create(CONFIG, 8, TEXTS, seed=0)
    train_reward_model(model, CONFIG, make_episodes(), seed=0)
    return model


def test_windows_are_the_clips_of_the_video(trained):
    episodes = make_episodes()
    probabilities = trained.probabilities(episodes.frames, episodes.instructions)
    assert probabilities.shape == (24, 8 + 2 - CONFIG.clip_length)
    clip = torch.from_numpy(episodes.frames[:, 2 : 2 + CONFIG.clip_length])
    with torch.no_grad():
        alone = trained.logits(clip, episodes.instructions).sigmoid()
    np.testing.assert_allclose(probabilities[:, 2], alone.numpy(), atol=1e-5)


def test_it_learns_the_outcome_and_reads_the_instruction(trained):
    episodes = make_episodes()
    best = trained.probabilities(episodes.frames, episodes.instructions).max(1)
    assert ((best > 0.5) == episodes.success).mean() > 0.95
    other = [TEXTS[1 - TEXTS.index(text)] for text in episodes.instructions]
    swapped = trained.probabilities(episodes.frames, other)[:, -1]
    assert (swapped[episodes.success] < 0.5).mean() > 0.9, "the end of a success is none under the other instruction"


def test_unknown_instructions_are_refused(trained):
    with pytest.raises(ValueError, match="'green' was not seen in training"):
        trained.probabilities(make_episodes().frames[:1], ["green"])


def test_saved_and_loaded_it_decides_the_same(trained, tmp_path):
    trained.threshold = 0.37
    trained.save(tmp_path / "reward")
    loaded = VideoMAERewardModel.load(tmp_path / "reward")
    episodes = make_episodes()
    assert loaded.threshold == 0.37 and loaded.instructions == TEXTS
    one, other = (m.probabilities(episodes.frames, episodes.instructions) for m in (trained, loaded))
    assert (one == other).all()


def test_clips_are_labelled_as_the_paper_says():
    episodes = make_episodes(count=2, steps=8)
    index = index_clips(episodes, clip_length=4, margin=2)
    assert index.positive.tolist() == [[0, 8]], "only the last clip of the success"
    assert [0, 7] not in index.negative.tolist() and [0, 6] in index.negative.tolist()
    assert [row for row in index.negative.tolist() if row[0] == 1] == [[1, end] for end in range(3, 9)]


def test_no_success_at_all_is_a_clear_error():
    episodes = make_episodes()
    with pytest.raises(UserError, match="no positive clip.*collect.num_trajectories"):
        RewardTrainer(VideoMAERewardModel.create(CONFIG, 8, TEXTS, 0), CONFIG, episodes.rows(~episodes.success), 0)
