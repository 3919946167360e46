"""A gradient that is summed up block by block is that of the mini-batch, and no block can be where it would not be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.learner_groups import (
    GROUP,
    KEYS,
    NUM,
    configured,
    give_parts,
    interrupt,
    make,
    mixed_groups,
    sample,
    without_times,
)
from tests.support.small_run import SETTINGS
from wmpo_ray.algorithms.base import make_algorithm
from wmpo_ray.config.algorithms import TrainingSection
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.learner_types import UpdateFacts

CUTS = [[1, 2, 3, 4, 5], [3], [1, 5]]


@pytest.mark.parametrize(
    ("kind", "training"),
    [
        ("grpo", {}),
        ("grpo", {"ratio": "token", "loss_mean": "ratio"}),
        ("grpo", {"chunks_per_pass": 3}),
        ("rloo", {}),
        ("gspo", {}),
    ],
)
def test_the_gradient_of_blocks_is_that_of_their_mini_batch(policy_dir, tmp_path, kind, training):
    """Up to rounding: sums are made in another order."""
    moved = []
    for per_pass in (0, 1):
        own = {key: value for key, value in training.items() if kind == "grpo" or key == "chunks_per_pass"}
        config = of_kind(kind, {"minibatch_trajectories": 12, "groups_per_pass": per_pass, "betas": [0.0, 0.0], **own})
        learner = make(config, policy_dir, tmp_path / str(per_pass))
        # GSPO's metrics count every trajectory the same, whether its outcome is known or not.
        data, groups = sample(learner, NUM * GROUP), mixed_groups(unknown=kind != "gspo")
        seen: list[dict[str, Tensor]] = []
        step = learner.optimizer.step

        def noted(learner=learner, seen=seen, step=step):
            named = learner.policy.named_parameters()
            seen.append({name: each.grad.clone() for name, each in named if each.grad is not None})
            return step()

        learner.optimizer.step = noted  # type: ignore[method-assign]
        metrics = learner.update(groups, UpdateFacts({}, KEYS, 7), data)[0].metrics
        moved.append((seen[0], without_times(metrics)))
    (whole, told), (blocks, told_of_blocks) = moved
    assert whole.keys() == blocks.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(blocks[name], gradient, rtol=1e-4, atol=1e-6)
    for name, value in told.items():
        assert told_of_blocks[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name


def of_kind(kind: str, training: dict) -> Config:
    shared = {key: value for key, value in SETTINGS["grpo"].items() if key in TrainingSection.model_fields}
    base = configured().model_dump(exclude={"grpo", "algorithm", "rloo", "gspo"}, exclude_unset=True)
    return Config.model_validate({**base, "algorithm": {"kind": kind}, kind: {**shared, **training}})


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"groups_per_pass": 1, "num_epochs": 2}, r"grpo.groups_per_pass=1 .* it needs grpo.num_epochs=1, not 2"),
        ({"groups_per_pass": 4}, r"is 16 trajectories .* more than grpo.minibatch_trajectories=12; .* at most 3"),
    ],
)
def test_blocks_that_cannot_be_are_refused(training, message):
    with pytest.raises(ValueError, match=message):
        configured(minibatch_trajectories=12, **training)


def test_an_algorithm_that_looks_at_the_whole_batch_has_no_blocks():
    with pytest.raises(ConfigError, match="reinforce_pp.groups_per_pass=1.* set reinforce_pp.groups_per_pass to 0"):
        make_algorithm(of_kind("reinforce_pp", {"minibatch_trajectories": 12, "groups_per_pass": 1}))


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("after", range(3))
def test_a_learner_that_is_lost_inside_a_mini_batch_begins_it_anew(policy_dir, tmp_path, every, after):
    config, groups = configured(every, minibatch_trajectories=8, groups_per_pass=1), mixed_groups()
    straight = make(config, policy_dir, tmp_path / "straight")
    data = sample(straight, NUM * GROUP)
    expected = straight.update(groups, UpdateFacts({}, KEYS, 7), data)[0]
    first = make(config, policy_dir, tmp_path / "cut")
    made = interrupt(first, 100)
    first.update_part(0, 0, groups[: 2 * after + 1], data)  # it is lost with half a mini-batch
    assert len(made) == after
    second = make(config, policy_dir, tmp_path / "cut")
    assert give_parts(second, groups, data, CUTS[after]).version == expected.version
