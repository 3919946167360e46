"""A supervised training shared between processes is the same training."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from learners.supervised.cloning import PolicyCloner, clone_policy
from learners.supervised.loop import WorkerShare
from learners.supervised.training_state import TrainingCheckpoints
from tests.support.documents import ROOT
from tests.support.openvla import small_policy
from tests.support.trainings import BATCH, STEPS, TRAININGS, Outcome, train_world
from tests.support.two_ranks import IN_PIECES, RESUMED
from wmpo_ray.config.run import CloningConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.observations import Observation
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
from wmpo_ray.rollout.evaluation import rollout_expert

LEARNING_RATE = 3e-3  # the largest: Adam makes of a rounding error in a gradient near 0 a step of up to this


@pytest.fixture(scope="module")
def whole() -> dict[str, Outcome]:
    torch.set_float32_matmul_precision("highest")
    return {name: training() for name, training in TRAININGS.items()}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """All trainings, each in the same two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    train_world(checkpoints=TrainingCheckpoints(folder / "checkpoints", STEPS - 1))
    command = [sys.executable, "-m", "tests.support.two_ranks", ",".join([*TRAININGS, RESUMED, IN_PIECES])]
    children = [subprocess.Popen([*command, str(rank), str(folder)], cwd=ROOT) for rank in range(2)]
    try:
        assert [child.wait(600) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    return folder


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    distances = torch.cat([(weights[name] - tensor).abs().flatten() for name, tensor in expected.items()])
    assert float(distances.max()) < 0.2 * LEARNING_RATE and float(distances.mean()) < 1e-6


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_with_unequal_shares_train_as_one(whole, two_ranks, name):
    weights, metrics = whole[name]
    ranks = [load_file(two_ranks / f"{name}-{rank}.safetensors") for rank in range(2)]
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0])
    assert_close(ranks[0], weights)
    told = ast.literal_eval((two_ranks / f"{name}-1.txt").read_text())
    assert {**told, "seconds": 0} == pytest.approx({**metrics, "seconds": 0}, rel=1e-5)


def test_what_one_process_began_two_go_on_with(whole, two_ranks):
    assert (two_ranks / "checkpoints" / f"step-{STEPS - 1:06d}").is_dir()
    assert_close(load_file(two_ranks / f"{RESUMED}-0.safetensors"), whole["world"][0])
    told = ast.literal_eval((two_ranks / f"{RESUMED}-0.txt").read_text())
    assert told["loss"] == pytest.approx(whole["world"][1]["loss"], rel=1e-5)


def test_ranks_that_go_through_their_shares_in_pieces_train_as_one(whole, two_ranks):
    assert_close(load_file(two_ranks / f"{IN_PIECES}-0.safetensors"), whole["tiny"][0])


@pytest.mark.parametrize("name", TRAININGS)
def test_the_gradients_of_pieces_add_up_to_those_of_the_batch(whole, name):
    weights, metrics = TRAININGS[name](micro_batch_size=3)
    assert_close(weights, whole[name][0])
    assert {**metrics, "seconds": 0} == pytest.approx({**whole[name][1], "seconds": 0}, rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_all_of_a_batch_and_differ_by_one_sample_at_most(size):
    shares = [WorkerShare(rank, size).of(BATCH) for rank in range(size)]
    assert [place for share in shares for place in range(BATCH)[share]] == list(range(BATCH))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_more_workers_than_samples_are_refused():
    demos = rollout_expert(PocketEnvironment(8), np.arange(2), 0.1, (0, "demos"))
    with pytest.raises(ConfigError, match="policy.cloning.batch_size=3.*4 workers.*cluster.training_workers"):
        PolicyCloner(small_policy(), demos, CloningConfig(batch_size=3), 0, WorkerShare(0, 4))


def test_cloning_teaches_openvla_and_leaves_a_published_folder(tmp_path):
    demos = rollout_expert(PocketEnvironment(8), np.arange(4), 0.1, (0, "demos"))
    policy = small_policy(compute_dtype="float32")
    losses: list[float] = []
    config = CloningConfig(steps=60, batch_size=8, learning_rate=3e-3)
    clone_policy(policy, demos, config, 0, lambda step, metrics: losses.append(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.5
    policy.save_pretrained(tmp_path)
    loaded = OpenVLAOFTPolicy.load(tmp_path)
    assert all(torch.equal(tensor, policy.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_cloning_with_adapters_changes_nothing_else(tmp_path):
    pytest.importorskip("peft")
    from wmpo_ray.policies.openvla.lora import add_lora

    demos = rollout_expert(PocketEnvironment(8), np.arange(4), 0.1, (0, "demos"))
    policy = small_policy(compute_dtype="float32")
    add_lora(policy, rank=4)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    losses: list[float] = []
    config = CloningConfig(steps=40, batch_size=8, learning_rate=1e-2)
    clone_policy(policy, demos, config, 0, lambda step, metrics: losses.append(metrics["loss"]))
    changed = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(".lora_" in name for name in changed)
    assert losses[-1] < losses[0]
    policy.save_pretrained(tmp_path)
    seen = Observation.of(demos.frames[:2, 0], demos.instructions[:2])
    merged = OpenVLAOFTPolicy.load(tmp_path).act(seen, 0.0, [0, 0])
    assert torch.equal(merged.record["tokens"], policy.act(seen, 0.0, [0, 0]).record["tokens"])
