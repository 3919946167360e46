"""An update that comes in parts is the update: same weights, same metrics, and nothing counts before it is finished."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from torch import Tensor

from learners.minibatches import IncomingGroups
from learners.policy_learner import PolicyLearner
from tests.support.learner_groups import (
    GROUP,
    KEYS,
    NUM,
    Killed,
    configured,
    give_parts,
    interrupt,
    make,
    mixed_groups,
    sample,
    without_times,
)
from tests.support.openvla import small_policy
from tests.support.rank_scenarios import config_for, run_on_ranks, train_in_parts
from wmpo_ray.algorithms.base import trains_in_parts
from wmpo_ray.algorithms.batching import Batch, Blocks
from wmpo_ray.algorithms.grpo import Grpo
from wmpo_ray.algorithms.rollout_bc import RolloutBc
from wmpo_ray.config.cluster import WeightsConfig
from wmpo_ray.core.learner_types import UpdateFacts

CUTS = [[1, 2, 3, 4, 5], [3], [1, 5], [2, 4], [4]]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(
    ("training", "unknown"),
    [
        ({"minibatch_trajectories": 4}, False),
        ({"minibatch_trajectories": 8}, True),
        ({"minibatch_trajectories": 6}, False),  # a group belongs to two of them
        ({"minibatch_trajectories": 10, "num_epochs": 2, "ratio": "token"}, True),
        ({"minibatch_trajectories": 4, "chunks_per_pass": 3, "advantage_std": "unbiased"}, False),
        ({"minibatch_trajectories": 12, "groups_per_pass": 1}, True),
        ({"minibatch_trajectories": 10, "groups_per_pass": 2, "chunks_per_pass": 3, "loss_mean": "ratio"}, True),
    ],
    ids=["groups", "unknown outcomes", "cut groups", "epochs", "passes", "blocks", "cut blocks"],
)
def test_parts_teach_what_the_whole_batch_teaches(policy_dir, tmp_path, cuts, training, unknown):
    config, groups = configured(**training), mixed_groups(unknown)
    whole, parts = make(config, policy_dir, tmp_path / "whole"), make(config, policy_dir, tmp_path / "parts")
    for update in range(2):
        data = sample(whole, NUM * GROUP, seed=update)
        expected = whole.update(groups, UpdateFacts({}, KEYS, 7), data)[0]
        found = give_parts(parts, groups, data, cuts)
        assert found.version == expected.version
        assert without_times(found.metrics) == without_times(expected.metrics)


def arrays_of(batch: Batch) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        entries = value if isinstance(value, dict) else {"": value}
        found |= {
            f"{field.name}.{key}": np.asarray(each)
            for key, each in entries.items()
            if isinstance(each, np.ndarray | Tensor)
        }
    return found


@pytest.mark.parametrize(("size", "of_pass"), [(3, 3), (4, 4), (8, 8), (10, 10), (24, 24), (12, 4), (10, 8)])
@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("deviation", ["population", "unbiased"])
def test_a_mini_batch_is_the_block_of_the_whole_batch_whatever_comes_together(
    policy_dir, tmp_path, size, of_pass, unknown, deviation
):
    config, groups = configured(minibatch_trajectories=size, advantage_std=deviation), mixed_groups(unknown)
    learner = make(config, policy_dir, tmp_path)
    data = sample(learner, NUM * GROUP)
    whole = Grpo(config).prepare(learner.policy, groups, [data])
    for cuts in [[], *CUTS]:
        incoming = IncomingGroups(Grpo(config), learner.policy, Blocks(size, of_pass), signed=False)
        found = []
        for first, last in zip([0, *cuts], [*cuts, NUM], strict=True):
            incoming.add(first, groups[first:last], [data])
            count, blocks = incoming.cut(is_last=last == NUM)
            ready = list(blocks)
            assert sum(each.is_last for each in ready) == count
            found += ready
        firsts = [first for start in range(0, NUM * GROUP, size) for first in range(start, start + size, of_pass)]
        assert [each.first for each in found] == [first for first in firsts if first < NUM * GROUP]
        ends = [*(each.first for each in found[1:]), NUM * GROUP]
        for each, end in zip(found, ends, strict=True):
            assert each.is_first == (each.first % size == 0) and each.is_last == (end % size == 0 or end == NUM * GROUP)
            block = slice(each.first, end)
            assert each.batch.instructions[each.rows] == whole.instructions[block]
            for name, values in arrays_of(whole).items():
                assert np.array_equal(arrays_of(each.batch)[name][each.rows], values[block]), name
        assert incoming.metrics() == whole.metrics


def test_a_part_that_comes_twice_counts_once(policy_dir, tmp_path):
    config, groups = configured(minibatch_trajectories=4), mixed_groups()
    expected = make(config, policy_dir, tmp_path / "once")
    data = sample(expected, NUM * GROUP)
    learner = make(config, policy_dir, tmp_path / "twice")
    made = interrupt(learner, 100)
    for first, last in ((0, 2), (0, 2), (1, 3), (0, 1)):
        learner.update_part(0, first, groups[first:last], data)
    found = learner.update(groups[2:], UpdateFacts({}, KEYS, 7, num_given=2), data)[0]
    assert found.version == give_parts(expected, groups, data, [3]).version
    assert made == [0, 4, 8, 12, 16, 20]


def test_nothing_counts_in_the_middle_of_an_update(policy_dir, tmp_path):
    learner = make(configured(minibatch_trajectories=4), policy_dir, tmp_path)
    before, groups, data = learner.weights(0)[0], mixed_groups(), sample(learner, NUM * GROUP)
    learner.update_part(0, 0, groups[:3], data)
    assert learner.weights(0)[0] == before, "replicas still imagine with them"
    assert learner.num_updates == 0 and not list(tmp_path.glob("step-*"))
    fresh = make(configured(minibatch_trajectories=4), policy_dir, tmp_path)
    assert fresh.published.publish(0)[0] == before and fresh.num_updates == 0
    learner.update(groups[3:], UpdateFacts({}, KEYS, 7, num_given=3), data)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000001"]


@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("after", range(5))
def test_a_learner_that_is_lost_between_parts_is_given_them_again_in_any_cut(policy_dir, tmp_path, every, after):
    config, groups = configured(every, minibatch_trajectories=4), mixed_groups()
    straight = make(config, policy_dir, tmp_path / "straight")
    data = sample(straight, NUM * GROUP)
    expected = straight.update(groups, UpdateFacts({}, KEYS, 7), data)[0]
    first = make(config, policy_dir, tmp_path / "cut")
    made = interrupt(first, after)
    with pytest.raises(Killed):
        give_parts(first, groups, data, [1, 2, 4])
    second = make(config, policy_dir, tmp_path / "cut")
    rest = interrupt(second, 100)
    result = give_parts(second, groups, data, CUTS[after % len(CUTS)])
    assert result.version == expected.version
    assert without_times(result.metrics) == without_times(expected.metrics)
    kept = made[: len(made) // every * every] if every else []
    assert kept + rest == [0, 4, 8, 12, 16, 20], "what a checkpoint inside the update holds is not done again"


@pytest.mark.parametrize("changed", range(NUM))
def test_a_checkpoint_of_other_groups_is_not_gone_on_from(policy_dir, tmp_path, changed):
    """Even if the first mini-batches are the same."""
    config, groups = configured(minibatch_trajectories=4), mixed_groups()
    first = make(config, policy_dir, tmp_path / "cut")
    data, other = sample(first, NUM * GROUP), sample(first, NUM * GROUP, seed=5)
    interrupt(first, 4)
    with pytest.raises(Killed):
        give_parts(first, groups, data, [2])
    sources = [data, other]
    mixed = [
        group._replace(pieces=((int(place == changed), group.pieces[0][1]),)) for place, group in enumerate(groups)
    ]

    def played(learner: PolicyLearner) -> str:
        learner.update_part(0, 0, mixed[:3], *sources)
        return learner.update(mixed[3:], UpdateFacts({}, KEYS, 7, num_given=3), *sources)[0].version.digest

    assert played(make(config, policy_dir, tmp_path / "cut")) == played(make(config, policy_dir, tmp_path / "straight"))


def test_a_part_of_another_update_or_behind_a_gap_is_a_fault_of_the_caller(policy_dir, tmp_path):
    learner = make(configured(minibatch_trajectories=4), policy_dir, tmp_path)
    data = sample(learner, NUM * GROUP)
    with pytest.raises(AssertionError, match="update 1 is not the next of a learner at 0"):
        learner.update_part(1, 0, mixed_groups()[:1], data)
    with pytest.raises(AssertionError, match="groups 0 to 1 have not come"):
        learner.update_part(0, 2, mixed_groups()[2:3], data)


def test_an_algorithm_that_needs_its_whole_batch_waits_for_it(policy_dir, tmp_path):
    config, groups = configured(kind="rollout_bc", minibatch_trajectories=4), mixed_groups()
    whole, parts = make(config, policy_dir, tmp_path / "whole"), make(config, policy_dir, tmp_path / "parts")
    data = sample(whole, NUM * GROUP)
    made = interrupt(parts, 100)
    parts.update_part(0, 0, groups[:5], data)
    assert made == []
    found = parts.update(groups[5:], UpdateFacts({}, KEYS, 7, num_given=5), data)[0]
    assert found.version == whole.update(groups, UpdateFacts({}, KEYS, 7), data)[0].version


def test_what_an_algorithm_says_of_its_mini_batches_is_not_inherited():
    class Normalized(Grpo):
        """It may do something with the whole batch."""

    assert trains_in_parts(Grpo(configured()))
    assert not trains_in_parts(Normalized(configured()))
    assert not trains_in_parts(RolloutBc(configured(kind="rollout_bc")))


@pytest.mark.parametrize("per_pass", [0, 1])
def test_two_ranks_take_parts_as_they_take_a_whole_batch(tmp_path, per_pass):
    small_policy(num_actions_chunk=4).save_pretrained(tmp_path / "policy")
    config = config_for(tmp_path / "policy")
    weights, grpo = (
        WeightsConfig(payload="delta", per_step=True),
        config.grpo.model_copy(update={"groups_per_pass": per_pass}),
    )
    config = config.model_copy(update={"weights": weights, "grpo": grpo})
    (whole, _), (parts, _) = (
        run_on_ranks(2, train_in_parts, config, tmp_path / "policy", tmp_path / name, cut)
        for name, cut in (("whole", 0), ("parts", 1))
    )
    assert parts.digests == whole.digests and len(set(whole.digests)) == 3
    assert [without_times(each) for each in parts.metrics] == [without_times(each) for each in whole.metrics]
