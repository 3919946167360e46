"""Behaviour cloning learns what the expert does."""

from __future__ import annotations

import numpy as np
import torch

from learners.supervised.cloning import clone_policy
from wmpo_ray.config.run import CloningConfig
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
