"""What every reward model must hold."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.implementations import REWARD_MODELS
from wmpo_ray import kinds
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.interfaces import RewardModel
from wmpo_ray.environments.pocket.env import INSTRUCTIONS

# Of kinds that load by their settings.
SETTINGS = {"vlm": ["reward.kind=vlm", "reward.pretrained=somewhere", "reward.steps=0"]}


@pytest.mark.parametrize("kind", REWARD_MODELS)
def test_reward_model(kind):
    model: RewardModel = REWARD_MODELS[kind]()
    assert isinstance(model, RewardModel)
    videos = np.random.default_rng(0).integers(0, 255, (2, 9, 16, 16, 3)).astype(np.uint8)
    probabilities = model.probabilities(videos, list(INSTRUCTIONS))
    assert probabilities.shape == (2, 9 - model.clip_length + 1)
    assert (probabilities >= 0).all() and (probabilities <= 1).all()
    cut = model.probabilities(videos[:, :6], list(INSTRUCTIONS))
    np.testing.assert_allclose(cut, probabilities[:, : cut.shape[1]], atol=1e-5)
    never, always = (model.decide(np.full((2, 6), p, np.float32), 0, 8) for p in (0.0, 1.0))
    assert not never.success.any() and (never.finish_step == 8).all()
    assert always.success.all() and (always.finish_step == max(model.clip_length - 1, 1)).all()
    assert not model.decide(np.full((2, 6), 0.0, np.float32), 7, 8).success.any()


@pytest.mark.parametrize("kind", REWARD_MODELS)
def test_it_decides_the_same_once_it_was_saved_and_whatever_is_judged_beside(kind, tmp_path):
    model: RewardModel = REWARD_MODELS[kind]()
    model.threshold = 0.41
    videos = np.random.default_rng(1).integers(0, 255, (3, 9, 16, 16, 3)).astype(np.uint8)
    texts = [INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(3)]
    found = model.probabilities(videos, texts)
    model.save(tmp_path / "model")
    loaded = kinds.REWARD_MODELS.find(kind).load(load_config("smoke", SETTINGS.get(kind, [])), str(tmp_path / "model"))
    assert (loaded.threshold, loaded.clip_length) == (0.41, model.clip_length)
    assert np.array_equal(loaded.probabilities(videos, texts), found)
    if kind != "videomae_published":  # whose batches are as large as what there is to judge
        assert np.array_equal(model.probabilities(videos[1:2], texts[1:2]), found[1:2])
