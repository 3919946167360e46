"""Who rolls out requests: in a world whose videos others judge, or in an environment that knows the outcome itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actors.environment_actor import EnvironmentActor
from actors.rollout_actor import RolloutActor
from tests.support.small_run import SETTINGS, small_config, small_starts
from wmpo_ray.config.run import Config
from wmpo_ray.core.types import GroupRequest, RolloutRequest
from wmpo_ray.data.spool import load_trajectories
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.policies.weight_exchange import WeightEncoder
from wmpo_ray.registry import load_policy


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("policy")
    settings = small_config().policy.network.model_dump()
    TinyPolicy(TinyPolicyHFConfig(**settings, vocabulary=vocabulary_of(INSTRUCTIONS))).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.model_validate({**SETTINGS, "world_model": {"kind": "simulator"}})


@pytest.fixture(scope="module")
def payload(config, policy_dir):
    policy = load_policy(config, policy_dir, training=True)
    return WeightEncoder(policy, config.weights, set()).encode(0)[1]


@pytest.fixture(scope="module")
def rollout_actor(config, policy_dir, payload) -> RolloutActor:
    actor = RolloutActor(config, policy_dir, "")
    actor.load_weights(payload)
    return actor


@pytest.fixture(scope="module")
def environment_actor(config, policy_dir, payload) -> EnvironmentActor:
    actor = EnvironmentActor(config, policy_dir)
    actor.load_weights(payload)
    return actor


def make_request(weights: str) -> RolloutRequest:
    groups = tuple(GroupRequest(0, i, i, start, 2, 0) for i, start in enumerate(small_starts(2)))
    return RolloutRequest(1, groups, 0, 1.0, weights)


def test_videos_are_for_a_judge_elsewhere(rollout_actor, tmp_path):
    beats = rollout_actor.num_beats
    path = tmp_path / "a.safetensors"
    summary, videos, trajectories = rollout_actor.rollout(make_request(rollout_actor.version.digest), str(path))
    assert summary.scores is None and videos.frames.shape == (4, 9, 16, 16, 3)
    assert rollout_actor.num_beats - beats == 2, "one for each chunk"
    back = load_trajectories(path, summary.sha256)
    assert np.array_equal(back.record["tokens"], trajectories.record["tokens"])


def test_in_an_environment_the_rollout_brings_its_scores(rollout_actor, environment_actor):
    request = make_request(environment_actor.version.digest)
    summary, videos, trajectories = environment_actor.rollout(request)
    assert videos is None and summary.scores.success.shape == (4,)
    _, _, imagined = rollout_actor.rollout(request)
    assert np.array_equal(trajectories.actions, imagined.actions), "the same world, whoever judges"
    seeds = [group.start.seed for group in request.groups for _ in range(2)]
    real, labels = environment_actor.compare_labels(trajectories, seeds, (summary.scores, 0.0))
    assert np.array_equal(real, labels)


def test_weights_that_are_not_held_are_refused(rollout_actor):
    with pytest.raises(RuntimeError, match="request 1 wants weights other"):
        rollout_actor.rollout(make_request("other"))


def test_evaluation_does_not_disturb_rollouts(environment_actor, payload):
    request = make_request(environment_actor.version.digest)
    before = environment_actor.rollout(request)[2]
    success = environment_actor.evaluate(payload, [7, 8, 9], 0.0)
    assert success.shape == (3,) and success.dtype == bool
    assert np.array_equal(environment_actor.rollout(request)[2].actions, before.actions)
