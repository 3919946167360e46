"""Policies and reward models see frames that are not square; square ones have the settings of before."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.support.trainings import reward_training
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.frame_sizes import frame_size_of, height_and_width
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.types import Episodes
from wmpo_ray.policies.tiny import TinyPolicy
from wmpo_ray.registry import create_policy
from wmpo_ray.reward_models.videomae import VideoMAERewardModel

HEIGHT, WIDTH = 8, 24


def demos(height: int = HEIGHT, width: int = WIDTH) -> Episodes:
    frames = np.random.default_rng(0).integers(0, 256, (2, 9, height, width, 3), np.uint8)
    actions, lengths = np.zeros((2, 8, 4), np.float32), np.full(2, 8)
    return Episodes(frames, actions, lengths, np.ones(2, bool), ("lift", "lift"), np.arange(2))


def config_of(patch_size: int = 4) -> Config:
    network = {"width": 32, "num_layers": 1, "num_heads": 2, "patch_size": patch_size}
    return Config.model_validate({"policy": {"network": network}})


def test_a_square_has_one_number():
    assert frame_size_of(16, 16) == 16 and frame_size_of(8, 24) == (8, 24)
    assert height_and_width(16) == (16, 16) and height_and_width([8, 24]) == (8, 24)
    with pytest.raises(ValueError, match="unpack"):
        height_and_width([1, 2, 3])


def test_a_policy_acts_on_frames_that_are_not_square_and_is_saved(tmp_path):
    policy = create_policy(config_of(), demos())
    seen = Observation.of(demos().frames[:, 0], ("lift", "lift"))
    decision = policy.act(seen, 1.0, [0, 1])
    assert decision.actions.shape == (2, 4, 4)
    policy.save_pretrained(tmp_path)
    assert torch.equal(TinyPolicy.load(tmp_path).act(seen, 1.0, [0, 1]).actions, decision.actions)
    assert json.loads((tmp_path / "config.json").read_text())["frame_size"] == [HEIGHT, WIDTH]


def test_a_reward_model_judges_frames_that_are_not_square_and_is_saved(tmp_path):
    _, config, _ = reward_training()
    model = VideoMAERewardModel.create(config, (HEIGHT, WIDTH), (), seed=0)
    videos = demos().frames
    judged = model.probabilities(videos, ("lift", "lift"))
    assert judged.shape == (2, 9 + 1 - config.clip_length)
    model.save(tmp_path / "model")
    assert np.array_equal(VideoMAERewardModel.load(tmp_path / "model").probabilities(videos, ("lift", "lift")), judged)


def test_square_frames_have_the_settings_of_before(tmp_path):
    create_policy(config_of(), demos(16, 16)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["frame_size"] == 16


def test_patches_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match=r"policy\.network\.patch_size = 5: frames of 8 x 24"):
        create_policy(config_of(5), demos())
    _, config, _ = reward_training()
    with pytest.raises(ConfigError, match=r"reward\.network\.patch_size = 8: frames of 8 x 20"):
        VideoMAERewardModel.create(config, (8, 20), (), seed=0)


@pytest.mark.parametrize("size", [[8], [8, 24, 1], [0, 24], "8", [8.5, 24]])
def test_a_size_that_is_none_is_refused(tmp_path, size):
    create_policy(config_of(), demos()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "frame_size": size}))
    with pytest.raises(UserError, match="config.json"):
        TinyPolicy.load(tmp_path)
