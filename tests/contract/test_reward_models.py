"""What every reward model must hold."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.implementations import REWARD_MODELS
from wmpo_ray.core.interfaces import RewardModel
from wmpo_ray.environments.pocket.env import INSTRUCTIONS


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
    assert always.success.all() and (always.finish_step == model.clip_length - 1).all()
