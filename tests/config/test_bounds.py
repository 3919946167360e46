"""Sizes that no run has are refused by their key and bound, before anything is planned or placed."""

from __future__ import annotations

import pytest

from tests.support.config_errors import error_of


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("collect.num_trajectories", "1000000000000", "10000000"),
        ("evaluation.num_starts", "1000000000000", "10000000"),
        ("policy.network.width", "1000000000", "65536"),
        ("world_model.network.depth", "1000000000", "1024"),
        ("environment.horizon", "4000000000", "100000"),
        ("rollout.group_size", "1000000000", "10000"),
        ("grpo.num_updates", "1000000000000", "10000000"),
        ("cluster.imagination_actors", "1000000000", "10000"),
        ("cluster.reward_actors", "[1, 99999]", "10000"),
        ("cluster.training_workers", "99999", "10000"),
        ("cluster.learner_ranks", "99999", "10000"),
        ("cluster.threads_per_process", "1000000000", "4096"),
        ("rollout.slots", "1000000000", "100000"),
        ("grpo.num_epochs", "1000000000000", "1000000000"),
        ("checkpoint.keep", "1000000000000", "1000000000"),
        ("placement.imagination.gpus", "-1", "0"),
        ("placement.imagination.gpus", "100000", "128"),
        ("placement.learner.cpus", "1e9", "4096"),
    ],
)
def test_an_absurd_size_is_refused_with_its_key_value_and_bound(key, value, bound):
    message = error_of("smoke", f"{key}={value}")
    assert message.startswith(f"{key} = ") and bound in message.replace(",", ""), message
