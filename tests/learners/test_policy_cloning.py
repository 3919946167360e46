"""Behaviour cloning learns what the expert does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.supervised.cloning import PolicyCloner, clone_policy
from wmpo_ray.config.run import CloningConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.observations import Observation
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.rollout.evaluation import rollout_expert


def make_policy() -> TinyPolicy:
    torch.manual_seed(0)
    vocabulary = vocabulary_of(PocketEnvironment.instructions)
    return TinyPolicy(TinyPolicyHFConfig(width=32, num_layers=1, num_heads=2, patch_size=8, vocabulary=vocabulary))


def expert_error(policy: TinyPolicy, demos) -> float:
    decision = policy.act(Observation.of(demos.frames[:, 0], demos.instructions), 0.0, [0] * len(demos))
    return float(np.abs(decision.actions[:, 0].numpy() - demos.actions[:, 0]).mean())


def test_the_policy_comes_closer_to_the_expert():
    demos = rollout_expert(PocketEnvironment(16), np.arange(16), 0.1, (0, "demos"))
    policy = make_policy()
    before = expert_error(policy, demos)
    metrics = clone_policy(policy, demos, CloningConfig(steps=150, batch_size=32, learning_rate=3e-3), seed=0)
    assert expert_error(policy, demos) < before / 2
    assert metrics["skipped_steps"] == 0 and metrics["loss"] < np.log(256)


def test_the_same_seed_gives_the_same_policy():
    demos = rollout_expert(PocketEnvironment(16), np.arange(4), 0.1, (0, "demos"))
    policies = [make_policy() for _ in range(2)]
    for policy in policies:
        clone_policy(policy, demos, CloningConfig(steps=3, batch_size=8), seed=5)
    pairs = zip(*(p.parameters() for p in policies), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_corrections_are_drawn_as_often_as_their_weight_says():
    demos = rollout_expert(PocketEnvironment(16), np.arange(4), 0.1, (0, "demos"))
    flags = np.zeros(demos.actions.shape[:2], bool)
    flags[1, :5] = True
    corrected = replace(demos, corrections=flags)

    def drawn(episodes, weight: float) -> np.ndarray:
        config = CloningConfig(steps=1, batch_size=20_000, correction_weight=weight)
        return PolicyCloner(make_policy(), episodes, config, seed=3).draw().numpy()

    assert np.array_equal(drawn(corrected, 1), drawn(demos, 1)), "neutral: as without corrections, bit for bit"
    assert np.array_equal(drawn(demos, 8), drawn(demos, 1)), "nothing was corrected"
    is_correction = np.repeat(np.arange(4) == 1, demos.lengths)
    is_correction &= np.concatenate([np.arange(length) < 5 for length in demos.lengths])
    for weight in (0, 4):
        wanted = 5 * weight / (5 * weight + int(demos.lengths.sum()) - 5)
        assert is_correction[drawn(corrected, weight)].mean() == pytest.approx(wanted, abs=0.02)
    with pytest.raises(UserError, match="correction_weight = 0: every step is an operator's"):
        drawn(replace(demos, corrections=np.ones_like(flags)), 0)
