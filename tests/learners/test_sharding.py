"""A learner in several processes learns what one process would; what it saves any number of processes can load."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from learners.policy_learner import PolicyLearner
from learners.sharding import ALONE, MetricMeans, Ranks
from tests.support.openvla import small_policy
from tests.support.rank_scenarios import (
    FACTS,
    Course,
    config_for,
    groups,
    run_on_ranks,
    sample,
    train,
    train_alone,
    train_and_export,
    train_on_episodes,
)
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import sha256_of
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.store import save_episodes
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
from wmpo_ray.registry import load_policy
from wmpo_ray.runs.checkpoint import MANIFEST


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    small_policy(num_actions_chunk=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def on_two(policy_dir, tmp_path_factory) -> tuple[list[Course], Path]:
    """Two updates on two ranks, and the folder of their checkpoints."""
    folder = tmp_path_factory.mktemp("on-two")
    return run_on_ranks(2, train, config_for(policy_dir), policy_dir, folder), folder


def logprobs(course: Course, config: Config, policy_dir: Path) -> torch.Tensor:
    """Of the sampled tokens under the weights at the end."""
    policy = load_policy(config, str(policy_dir), training=True)
    torch.set_float32_matmul_precision("highest")
    policy.load_state_dict({name: torch.from_numpy(values) for name, values in course.weights.items()})
    data = sample()
    with torch.no_grad():
        seen = Observation.of(data.frames[:, 0], data.instructions)
        return policy.log_prob(seen, {"tokens": torch.from_numpy(data.record["tokens"][:, 0])}, 1.0)


def assert_same_course(found: Course, expected: Course, config: Config, policy_dir: Path) -> None:
    """Within what the order of float sums changes. Adam makes as much of a gradient that is nothing but rounding as of
    any other, so weights may differ where they do not matter: the policies must agree."""
    for ours, theirs in zip(found.metrics, expected.metrics, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"time/update_s"}:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-4), name
    ours, theirs = (logprobs(course, config, policy_dir) for course in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    differences = np.concatenate([np.abs(found.weights[n] - expected.weights[n]).ravel() for n in expected.weights])
    assert np.mean(differences > 1e-5) < 0.01, "a tenth of what one step moves a weight"


def test_two_ranks_learn_what_one_process_learns(on_two, policy_dir, tmp_path):
    (first, second), _ = on_two
    config = config_for(policy_dir)
    alone = train_alone(config, policy_dir, tmp_path)
    assert first.digests[0] == alone.digests[0], "equal weights have equal digests, however they are held"
    assert first.digests[1] != first.digests[0]
    assert_same_course(first, alone, config, policy_dir)
    assert first.metrics[0]["policy/loss"] == second.metrics[0]["policy/loss"], "all ranks know the whole loss"
    assert first.num_units == 1 + 2 + 3 + 2, (
        "the policy, the layers of its language model, the blocks of its two towers"
    )
    for course in (first, second):
        assert 0.4 < course.state_bytes / alone.state_bytes < 0.6, "each rank keeps its part of the moments"


@pytest.mark.parametrize(
    ("openvla", "grpo"),
    [
        ({"gradient_checkpointing": True}, {"ratio": "token", "chunks_per_pass": 2}),
        ({"lora_rank": 2}, {}),
        ({"lora_rank": 2, "gradient_checkpointing": True}, {"chunks_per_pass": 3}),
    ],
    ids=["recomputed", "adapters", "adapters-recomputed"],
)
def test_every_way_of_training_is_the_same_on_two_ranks(policy_dir, tmp_path, openvla, grpo):
    if "lora_rank" in openvla:
        pytest.importorskip("peft")
    config = config_for(policy_dir, openvla, **grpo)
    (first, _) = run_on_ranks(2, train, config, policy_dir, tmp_path / "two", 1)
    assert_same_course(first, train_alone(config, policy_dir, tmp_path / "one", 1), config, policy_dir)


@pytest.mark.parametrize("kind", ["dpo", pytest.param("filtered_bc", marks=pytest.mark.slow)])
def test_recorded_episodes_teach_two_ranks_what_they_teach_one(policy_dir, tmp_path, kind):
    """With the reference of a pair, its loss and its slope known to both ranks, whoever computes which of its chunks."""
    data, lengths = sample(), np.array([3, 8, 8, 6] * 2)
    frames = np.repeat(data.frames, 4, 1)[:, [0, *range(8)]]
    success = np.array([True, False] * 4)
    flat = data.actions.reshape(8, 8, 3)
    path = tmp_path / "episodes.parquet"
    save_episodes(path, Episodes(frames, flat, lengths, success, data.instructions[:1] * 8, np.zeros(8, np.int64)))
    base = config_for(policy_dir).model_dump()
    section = {"num_updates": 2, "episodes_per_update": 8, "minibatch_trajectories": 4, "chunks_per_pass": 2}
    config = Config.model_validate(
        {**{name: value for name, value in base.items() if name != "grpo"}, "algorithm": {"kind": kind}, kind: section}
    )
    (first, second) = run_on_ranks(2, train_on_episodes, config, policy_dir, tmp_path / "two", path)
    alone = train_on_episodes(ALONE, config, policy_dir, tmp_path / "one", path)
    assert_same_course(first, alone, config, policy_dir)
    assert first.metrics[0]["policy/loss"] == second.metrics[0]["policy/loss"], "all ranks know the whole loss"
    assert alone.digests[0] != alone.digests[1] != alone.digests[2]


def test_bfloat16_computes_on_float32_weights(policy_dir, tmp_path):
    (first, _) = run_on_ranks(2, train, config_for(policy_dir, {"compute_dtype": "bfloat16"}), policy_dir, tmp_path, 1)
    assert all(values.dtype == np.float32 for values in first.weights.values())
    exact = train_alone(config_for(policy_dir), policy_dir, tmp_path / "one", 1)
    found, expected = first.metrics[0]["policy/grad_norm"], exact.metrics[0]["policy/grad_norm"]
    assert found != expected and found == pytest.approx(expected, rel=0.2)


def test_a_loss_that_is_not_finite_is_skipped_on_all_ranks(policy_dir, tmp_path):
    answers = run_on_ranks(2, train_on_nonsense, config_for(policy_dir), policy_dir, tmp_path)
    assert answers[0][0] == answers[0][1] != "", "the weights are those before"
    assert [skipped for *_, skipped in answers] == [2, 2]


def train_on_nonsense(ranks: Ranks, config, policy_dir, folder) -> tuple[str, str, int]:
    learner = PolicyLearner(config, str(policy_dir), str(folder), ranks)
    before, data = learner.resume().version.digest, sample()
    data.behavior_logprobs[:] = np.nan
    return before, learner.update(groups(), FACTS, data)[0].version.digest, learner.num_skipped


def test_a_rank_that_dies_ends_the_others_and_they_go_on_where_they_were(on_two, policy_dir, tmp_path):
    (undisturbed, _), _ = on_two
    answers = run_on_ranks(2, train, config_for(policy_dir), policy_dir, tmp_path, 2, 3)
    assert isinstance(answers[0], RuntimeError) and answers[1] is None
    assert (tmp_path / "step-000001").is_dir() and (tmp_path / "in-update" / "step-000001").is_dir()
    (again, _) = run_on_ranks(2, train, config_for(policy_dir), policy_dir, tmp_path)
    assert again.digests[0] == undisturbed.digests[1]
    assert again.digests[-1] == undisturbed.digests[-1]


@pytest.fixture
def saved(on_two, tmp_path) -> Path:
    """A copy of the checkpoints."""
    return Path(shutil.copytree(on_two[1], tmp_path / "saved"))


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_what_two_ranks_saved_one_process_loads_and_the_reverse(on_two, saved, policy_dir, tmp_path):
    (first, _), folder = on_two
    config = config_for(policy_dir)
    alone = train_alone(config, policy_dir, saved, num_updates=3)
    assert alone.digests[0] == first.digests[-1], "bit for bit"
    (back, _) = run_on_ranks(2, train, config, policy_dir, saved, 3)
    assert back.digests == [alone.digests[-1]], "nothing is left to train"
    shutil.copytree(folder, tmp_path / "again")
    (together, _) = run_on_ranks(2, train, config, policy_dir, tmp_path / "again", 3)
    assert_same_course(together, alone, config, policy_dir)


def test_the_policy_of_two_ranks_is_saved_in_the_published_layout(policy_dir, tmp_path):
    (first, _) = run_on_ranks(2, train_and_export, config_for(policy_dir), policy_dir, tmp_path)
    loaded = OpenVLAOFTPolicy.load(tmp_path / "policy").state_dict()
    assert loaded.keys() == first.weights.keys()
    assert all(np.array_equal(loaded[name].numpy(), values) for name, values in first.weights.items())
    assert (tmp_path / "policy" / "dataset_statistics.json").exists()


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


def test_damage_to_the_file_of_one_rank_leads_to_the_checkpoint_before(saved, policy_dir):
    _, second = shards(saved / "step-000002")
    raw = bytearray(second.read_bytes())
    raw[-1] ^= 1
    second.write_bytes(raw)
    state = PolicyLearner(config_for(policy_dir), str(policy_dir), str(saved)).resume()
    assert state.version.num_updates == 1
    assert [problem for problem in state.problems if second.name in problem]


def test_a_rank_whose_file_is_not_listed_is_missed(saved, policy_dir):
    """A manifest that is right about the files that are there, and a part of every tensor that is not."""
    folder = saved / "step-000002"
    _, second = shards(folder)
    second.unlink()
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"][second.name]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"step-000002.*"):
        PolicyLearner(config_for(policy_dir), str(policy_dir), str(saved)).resume()


@pytest.mark.parametrize("info", ["no json", "{}", '{"policy.projector.fc1.bias": {"saved_offsets": [99999999]}}'])
def test_an_index_of_parts_that_makes_no_sense_is_refused(saved, policy_dir, info):
    folder = saved / "step-000002"
    first, _ = shards(folder)
    with safe_open(first, "pt") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    save_file(tensors, first, {"DCP_SHARDING_INFO": info})
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][first.name] = {"bytes": first.stat().st_size, "sha256": sha256_of(first)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"step-000002 is damaged"):
        PolicyLearner(config_for(policy_dir), str(policy_dir), str(saved)).resume()


# -- shares and metrics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size", "max_size"), [(7, 2, 0), (7, 2, 2), (1, 4, 0), (16, 4, 3), (0, 2, 2)])
def test_ranks_share_every_place_once_in_equally_many_parts(count, size, max_size):
    parts = [Ranks(rank, size).parts(torch.arange(count), max_size) for rank in range(size)]
    assert torch.equal(torch.cat([part for own in parts for part in own]), torch.arange(count))
    assert len({len(own) for own in parts}) == 1
    sizes = [sum(len(part) for part in own) for own in parts]
    assert max(sizes) - min(sizes) <= 1
    assert not max_size or all(len(part) <= max_size for own in parts for part in own)


def test_metrics_of_parts_are_those_of_the_whole():
    means = MetricMeans()
    means.add({"mean": torch.tensor(1.0), "some_max": 5.0}, 3)
    means.add({"mean": torch.tensor(4.0), "some_max": 2.0}, 1)
    means.add({"mean": math.nan, "some_max": math.nan}, 0)
    assert means.over(ALONE) == {"mean": 1.75, "some_max": 5.0}
