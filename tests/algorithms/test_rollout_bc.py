"""Cloning of rollouts: the successes, up to where they succeeded."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from learners.sharding import ALONE
from tests.support.learner_groups import sample
from tests.support.recorded import tiny_policy
from tests.support.small_run import SETTINGS
from wmpo_ray.algorithms.batching import GroupSlice
from wmpo_ray.algorithms.rollout_bc import RolloutBc
from wmpo_ray.config.run import Config
from wmpo_ray.core.observations import Observation

OTHERS = {key: value for key, value in SETTINGS.items() if key != "grpo"}
CONFIG = Config.model_validate({**OTHERS, "algorithm": {"kind": "rollout_bc"}, "rollout_bc": SETTINGS["grpo"]})


def test_a_batch_is_the_successes_up_to_their_end():
    policy = tiny_policy(CONFIG)
    sampled = sample(SimpleNamespace(policy=policy))  # type: ignore[arg-type]
    success, finish = np.array([True, False, False, True]), np.array([8, 8, 8, 3])
    groups = [GroupSlice(((0, (0, 4)),), success, finish), GroupSlice(((0, (4, 8)),), ~success, finish)]
    batch = RolloutBc(CONFIG).prepare(policy, groups, [sampled])
    rows = [0, 3, 5, 6]
    assert len(batch) == 4 and batch.metrics == {"cloning/episodes": 4.0}
    assert np.array_equal(batch.images["main"], sampled.frames[rows])
    assert batch.decided.tolist() == [[True, True], [True, False], [True, True], [True, True]]
    (part,) = RolloutBc(CONFIG).losses(policy, batch, slice(0, 2), ALONE)
    places = [(0, 0), (0, 1), (3, 0)]
    frames = np.stack([sampled.frames[i, n] for i, n in places])
    texts = [sampled.instructions[i] for i, _ in places]
    actions = torch.from_numpy(np.stack([sampled.actions[i, n] for i, n in places]))
    torch.testing.assert_close(part.loss, policy.cloning_loss(Observation.of(frames, texts), actions))


def test_what_is_unknown_is_not_cloned():
    policy = tiny_policy(CONFIG)
    sampled = sample(SimpleNamespace(policy=policy))  # type: ignore[arg-type]
    success, known = np.array([True, False, False, False]), np.array([True, True, False, False])
    batch = RolloutBc(CONFIG).prepare(policy, [GroupSlice(((0, (0, 4)),), success, np.full(4, 8), known)], [sampled])
    assert len(batch) == 1
