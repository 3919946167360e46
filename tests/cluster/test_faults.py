"""Faults leave no trace: whatever dies or hangs, the run ends with the weights of the undisturbed one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.host.connection import start_here
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.serial_runtime import SerialRuntime
from tests.support.faulty_config import faulty_config
from tests.support.sabotage import Plan, sabotage
from tests.support.small_run import finish, make_loop, run, save_models
from wmpo_ray.core.errors import UserError


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, faulty_config())
    return folder


@pytest.fixture(scope="module")
def undisturbed(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    loop, _ = make_loop(faulty_config(), SerialRuntime(), models, folder)
    return finish(loop, folder), loop


@pytest.fixture(scope="module")
def ray_runtime():
    start_here(num_cpus=4)
    yield RayRuntime()
    ray.shutdown()


def torment(config, runtime, models, folder, plan, monkeypatch):
    sabotage(monkeypatch, plan)
    loop, log = make_loop(config, runtime, models, folder)
    digest = finish(loop, folder)
    assert not plan.left, "nobody came to these points"
    return digest, loop, log


def outcomes(loop) -> dict:
    """What became of every group."""
    return {key: (r.state, r.facts.get("verdict"), r.facts.get("success")) for key, r in loop.ledger.records.items()}


def test_imagination_and_reward_workers_may_die_anywhere(undisturbed, models, tmp_path, ray_runtime, monkeypatch):
    plan = Plan(tmp_path / "plan")
    for update, attempt, chunk in ((0, 0, 0), (1, 2, 3)):
        plan.add(f"chunk-{update}-{attempt}-{chunk}")
    plan.add("imagined-2-0")
    plan.add("score-0-0")
    plan.add("scored-2-2")
    digest, loop, log = torment(faulty_config(), ray_runtime, models, tmp_path / "run", plan, monkeypatch)
    assert digest == undisturbed[0]
    assert outcomes(loop) == outcomes(undisturbed[1])
    assert loop.team.num_restarts == 5
    lost = [fact for fact in log.events if fact["event"] == "worker.lost"]
    assert len(lost) == 5 and all("died" in fact["error"] for fact in lost), "the original error is told"


@pytest.mark.slow
def test_workers_that_hang_are_replaced(undisturbed, models, tmp_path, ray_runtime, monkeypatch):
    plan = Plan(tmp_path / "plan")
    plan.add("chunk-0-2-1", signal.SIGSTOP)
    plan.add("before-step-2-0", signal.SIGSTOP)
    config = faulty_config(faults={"heartbeat_timeout_s": 8.0, "max_crashes": 5})
    digest, _loop, log = torment(config, ray_runtime, models, tmp_path / "run", plan, monkeypatch)
    assert digest == undisturbed[0]
    lost = [fact["error"] for fact in log.events if fact["event"] == "worker.lost"]
    # More than these, if the machine is so busy that a worker that is well keeps its answer for eight seconds.
    assert len(lost) >= 2 and all("has not answered" in error for error in lost)


@pytest.mark.slow
def test_the_learner_may_die_anywhere(undisturbed, models, tmp_path, ray_runtime, monkeypatch):
    plan = Plan(tmp_path / "plan")
    plan.add("after-step-0-8")
    plan.add("in-checkpoint-2")
    (plan.folder / "kill-learner-1").touch()  # a replica does it while the weights are on their way
    config = faulty_config(faults={"max_crashes": 10})
    digest, loop, _log = torment(config, ray_runtime, models, tmp_path / "run", plan, monkeypatch)
    assert digest == undisturbed[0]
    assert outcomes(loop) == outcomes(undisturbed[1])
    assert len(plan.notes("learner-")) == 4


@pytest.mark.slow
def test_a_receiver_that_dies_does_not_take_the_learner_along(undisturbed, models, tmp_path, ray_runtime, monkeypatch):
    plan = Plan(tmp_path / "plan")
    plan.add("load-1")
    digest, loop, _ = torment(faulty_config(), ray_runtime, models, tmp_path / "run", plan, monkeypatch)
    assert digest == undisturbed[0] and loop.team.num_restarts == 1
    assert len(plan.notes("learner-")) == 1, "the learner kept its process"


@pytest.mark.slow
def test_a_start_state_that_crashes_its_worker_is_kept_and_left_out(
    undisturbed, models, tmp_path, ray_runtime, monkeypatch
):
    _, healthy = undisturbed
    key = (0, 1)
    start = healthy.ledger.records[key].facts["start"]
    plan = Plan(tmp_path / "plan")
    plan.always(f"start-{start}")
    config = faulty_config(grpo={"num_updates": 1}, faults={"max_crashes": 2})
    _, loop, _ = torment(config, ray_runtime, models, tmp_path / "run", plan, monkeypatch)
    assert outcomes(loop)[key][:2] == ("rejected", "quarantined")
    # The others of its batch were imagined alone, and came to the same.
    assert outcomes(loop)[(0, 0)] == outcomes(healthy)[(0, 0)]
    (kept,) = (tmp_path / "run" / "quarantine").iterdir()
    assert json.loads((kept / "about.json").read_text())["start_index"] == start
    assert (kept / "start.safetensors").exists()


@pytest.mark.parametrize("staleness", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", ["tensors.safetensors", "meta.json", "manifest.json", "../latest"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_any_damaged_checkpoint_file_leads_back_to_the_same_weights(
    models, tmp_path, file, damage, staleness, undisturbed, stale_digest
):
    config = faulty_config(filter={"max_staleness": staleness})
    run(faulty_config(filter={"max_staleness": staleness}, grpo={"num_updates": 2}), SerialRuntime(), models, tmp_path)
    path = tmp_path / "checkpoints" / "step-000002" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    contents = {"flip": bytes(data), "truncate": bytes(data[: len(data) // 2])}
    path.write_bytes(contents[damage]) if damage in contents else path.unlink()
    loop, log = make_loop(config, SerialRuntime(), models, tmp_path)
    assert finish(loop, tmp_path) == (stale_digest if staleness else undisturbed[0])
    assert any(path.name in told for told in log.told), log.told


@pytest.fixture(scope="module")
def stale_digest(models, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("stale")
    return run(faulty_config(filter={"max_staleness": 1}), SerialRuntime(), models, folder)[0]


@pytest.mark.slow
def test_one_update_of_staleness_is_exact_on_ray_too(models, tmp_path, ray_runtime, stale_digest, undisturbed):
    loop, _log = make_loop(faulty_config(filter={"max_staleness": 1}), ray_runtime, models, tmp_path)
    assert finish(loop, tmp_path) == stale_digest != undisturbed[0]
    wanted = {key: r.facts["weights"] for key, r in loop.ledger.records.items()}
    digests = {version: digest for version, (digest, *_) in enumerate_versions(loop)}
    assert all(len({w for (update, _), w in wanted.items() if update == u}) == 1 for u in range(3))
    assert wanted[(0, 0)] == wanted[(1, 0)], "the first two updates are imagined under the first weights"
    assert wanted[(2, 0)] not in (wanted[(1, 0)], digests.get(2))


def enumerate_versions(loop):
    return [(version, (about.digest, full)) for version, (about, full, _) in loop.weights.items()]


def test_a_disk_that_is_full_stops_the_run_and_costs_nothing(undisturbed, models, tmp_path, monkeypatch):
    import errno

    import wmpo_ray.core.files

    original, written = wmpo_ray.core.files.write_all, []

    def full_after(descriptor, data):
        written.append(len(data))
        if len(written) == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor, data)

    monkeypatch.setattr("cluster.loop.ledger.write_all", full_after)
    with pytest.raises(UserError, match="disk is full"):
        run(faulty_config(), SerialRuntime(), models, tmp_path)
    monkeypatch.undo()
    assert run(faulty_config(), SerialRuntime(), models, tmp_path)[0] == undisturbed[0]


def test_a_group_comes_out_the_same_alone_in_its_batch_and_with_others(models):
    """Batch composition changes no bit: what makes it safe to try the groups of a request one by one."""
    from tests.support.small_run import small_starts
    from wmpo_ray.core.types import GroupRequest, RolloutRequest
    from wmpo_ray.registry import load_policy, load_world_model
    from wmpo_ray.rollout.requests import rollout_request

    config = faulty_config()
    policy = load_policy(config, str(models / "policy"))
    world = load_world_model(config, str(models / "world-model"))
    starts = small_starts()
    groups = tuple(GroupRequest(0, i, i, starts[i], 4, 0) for i in range(3))
    together = rollout_request(policy, world, RolloutRequest(1, groups, 0, 1.0), config.num_chunks)
    for place in range(3):
        alone = rollout_request(policy, world, RolloutRequest(1, groups, 0, 1.0).alone(place), config.num_chunks)
        rows = slice(4 * place, 4 * place + 4)
        assert np.array_equal(alone.videos.frames[rows], together.videos.frames[rows])
        assert np.array_equal(alone.trajectories.behavior_logprobs[rows], together.trajectories.behavior_logprobs[rows])
