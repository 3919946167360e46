"""Laws of the main loop, with real models and a real Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from cluster.host.connection import start_here
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.serial_runtime import SerialRuntime
from tests.support.small_run import SETTINGS, finish, make_loop, run, save_models, small_config
from wmpo_ray.config.cluster import WeightsConfig
from wmpo_ray.config.run import IMPLIED_BY_RECIPE, Config
from wmpo_ray.core.errors import UserError


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, small_config())
    return folder


@pytest.fixture(scope="module")
def serial(models, tmp_path_factory) -> tuple[str, list[dict]]:
    return run(small_config(), SerialRuntime(), models, tmp_path_factory.mktemp("serial"))


@pytest.fixture(scope="module")
def ray_runtime():
    start_here(num_cpus=4)
    yield RayRuntime()
    ray.shutdown()


def sizes(imagination: int, reward: int) -> dict[str, int]:
    return {"imagination": imagination, "reward": reward}


def test_a_run_trains_and_logs_every_update(serial):
    _, lines = serial
    updates = [line for line in lines if "policy/loss" in line]
    assert [line["update"] for line in updates] == [1, 2, 3]
    assert len({line["policy/loss"] for line in updates}) == 3
    for line in updates:
        assert line["queue/admit"] == 4 and line["policy/skipped_steps"] == 0
        # Weights used in the first mini-batch are those of sampling: recomputed log-probabilities agree.
        assert line["policy/logprob_distance"] < 1e-4
    assert {line["update"] for line in lines if "real/success_rate" in line} == {0, 2}


def test_the_same_run_gives_the_same_weights(serial, models, tmp_path):
    assert run(small_config(), SerialRuntime(), models, tmp_path)[0] == serial[0]


@pytest.mark.slow  # test_members.py has members of groups on three actors
@pytest.mark.parametrize("actors", [3])
def test_ray_gives_the_weights_of_the_serial_run_bit_for_bit(serial, models, tmp_path, ray_runtime, actors):
    digest, lines = run(small_config(imagination_actors=actors, spares=1), ray_runtime, models, tmp_path)
    assert digest == serial[0]
    keys = ("policy/loss", "imagined/success_rate", "queue/uniform")
    ours = [[line[key] for key in keys] for line in lines if "policy/loss" in line]
    assert ours == [[line[key] for key in keys] for line in serial[1] if "policy/loss" in line]


def with_weights(**weights) -> Config:
    config = small_config()
    grpo = config.grpo.model_copy(update={"num_updates": 2})
    return config.model_copy(update={"grpo": grpo, "weights": WeightsConfig(dtype="bfloat16", **weights)})


@pytest.mark.slow
def test_however_the_weights_travel_the_run_is_the_same(models, tmp_path, ray_runtime, serial):
    """Rounded weights act otherwise than full ones, but deltas and broadcasts bring the very same ones."""
    expected = run(with_weights(), SerialRuntime(), models, tmp_path / "full")[0]
    assert expected != serial[0]
    assert run(with_weights(payload="delta"), SerialRuntime(), models, tmp_path / "delta")[0] == expected
    broadcast = with_weights(payload="delta", transport="gloo")
    assert run(broadcast, ray_runtime, models, tmp_path / "gloo")[0] == expected


@pytest.mark.slow
def test_workers_may_come_in_the_middle_of_a_run(serial, models, tmp_path, ray_runtime, monkeypatch):
    loop, log = make_loop(small_config(imagination_actors=(1, 3), reward_actors=(1, 2)), ray_runtime, models, tmp_path)
    assert loop.crew.pools["imagination"].size == 1
    wanted = iter([sizes(1, 1), sizes(3, 2)])
    latest = [sizes(1, 1)]

    def targets(has_work: bool = True) -> dict[str, int]:
        if loop.version is not None and loop.version.num_updates >= len(seen):
            seen.append(loop.version.num_updates)
            latest[0] = next(wanted, sizes(2, 1))
        return latest[0]

    seen: list[int] = []
    monkeypatch.setattr(loop.team.rates, "targets", targets)
    assert finish(loop, tmp_path) == serial[0]
    assert len(seen) >= 3 and any("imagination workers: 1 -> 3" in line for line in log.told)


def test_another_seed_gives_other_weights(serial, models, tmp_path):
    config = small_config().model_copy(update={"seed": 1})
    assert run(config, SerialRuntime(), models, tmp_path)[0] != serial[0]


def test_a_run_killed_and_resumed_ends_with_the_same_weights(serial, models, tmp_path):
    (tmp_path / "models").symlink_to(models)
    command = [sys.executable, "-m", "tests.support.small_run", str(tmp_path), "3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "step-000001" / "manifest.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    digest, lines = run(small_config(), SerialRuntime(), models, tmp_path / "run")
    assert digest == serial[0]
    assert min(line["update"] for line in lines if "policy/loss" in line) > 1, "it started from the beginning"


def test_a_reward_model_that_never_accepts_stops_the_run_with_a_histogram(models, tmp_path):
    import json

    copy = tmp_path / "models"
    subprocess.run(["cp", "-r", str(models), str(copy)], check=True)
    settings = json.loads((copy / "reward-model" / "reward_model.json").read_text())
    (copy / "reward-model" / "reward_model.json").write_text(json.dumps({**settings, "threshold": 1.1}))
    config = small_config()
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_attempts": 8})})
    with pytest.raises(UserError, match=r"0/4: \d+.*reward model never accepts"):
        run(config, SerialRuntime(), copy, tmp_path / "checkpoints")


def test_more_actors_than_cpus_is_refused(models, tmp_path, ray_runtime):
    with pytest.raises(UserError, match=r"imagination_actors=100"):
        run(small_config(imagination_actors=100), ray_runtime, models, tmp_path)


def with_budget(limit: int) -> Config:
    """One group a request, so that no more is issued than is needed."""
    rollout = {**SETTINGS["rollout"], "groups_per_request": 1, "max_trajectories": limit}
    return Config.model_validate({**SETTINGS, "rollout": rollout})


def test_training_ends_where_the_budget_of_trajectories_does(models, tmp_path):
    """Every trajectory counts, those of rejected groups too; what was trained is what a longer run trains first."""
    loop, log = make_loop(with_budget(0), SerialRuntime(), models, tmp_path / "free")
    finish(loop, tmp_path / "free")
    each = [int(line["imagined/trajectories"]) for line in log.lines if "policy/loss" in line]
    limit = sum(each[:2]) + 4  # enough for two updates, and one group of the third
    loop, ours = make_loop(with_budget(limit), SerialRuntime(), models, tmp_path / "short")
    finish(loop, tmp_path / "short")
    assert [line["policy/loss"] for line in ours.lines if "policy/loss" in line] == [
        line["policy/loss"] for line in log.lines if "policy/loss" in line
    ][:2]
    account = loop.ledger.account()
    assert account.issued * 4 <= limit and account.waiting == account.in_flight == 0
    assert [event["updates"] for event in ours.events if event["event"] == "budget.spent"] == [2]


def test_a_budget_is_counted_on_from_a_checkpoint(models, tmp_path):
    """A run that was interrupted after an update spends no more than one that was not."""
    config = with_budget(40)
    loop, _ = make_loop(config, SerialRuntime(), models, tmp_path / "whole")
    whole = finish(loop, tmp_path / "whole"), loop.budget.spent
    loop, _ = make_loop(config, SerialRuntime(), models, tmp_path / "cut")
    advance = loop.advance

    def stop(event) -> None:
        advance(event)
        raise KeyboardInterrupt

    loop.advance = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        finish(loop, tmp_path / "cut")
    loop, _ = make_loop(config, SerialRuntime(), models, tmp_path / "cut")
    assert (finish(loop, tmp_path / "cut"), loop.budget.spent) == whole and 0 < whole[1] <= 40


def test_a_budget_too_small_for_one_update_is_refused():
    with pytest.raises(ValueError, match="below the 16 of one update"):
        with_budget(15)


def test_imagined_successes_can_all_be_the_base_policys(models, tmp_path):
    """As the recipe `bc-imagined` sets it: no rollout is of weights that were trained."""
    implied = {"algorithm": {"kind": "rollout_bc"}, "filter": IMPLIED_BY_RECIPE["bc-imagined"]["filter"]}
    others = {key: value for key, value in SETTINGS.items() if key != "grpo"}
    config = Config.model_validate({**others, **implied, "rollout_bc": SETTINGS["grpo"]})
    loop, log = make_loop(config, SerialRuntime(), models, tmp_path)
    finish(loop, tmp_path)
    updates = [line for line in log.lines if "policy/loss" in line]
    assert [line["update"] for line in updates] == [1, 2, 3] and all(line["cloning/episodes"] for line in updates)
    assert len({record.facts["weights"] for record in loop.ledger.records.values()}) == 1
