"""Recording and evaluating on a pool of workers: the same bytes on any number of them, and after any loss."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
import ray

from cluster.host.connection import start_here
from cluster.loop import reality
from cluster.recipes.context import RunContext, Services
from cluster.recording import recorder
from cluster.recording.recorder import check_runtime_env, num_processes
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.serial_runtime import SerialRuntime
from tests.support.one_stage import Listener, do
from tests.support.recordings import (
    RECORDED,
    RECORDING,
    STAGES,
    HalfSkilled,
    HalfSkilledRecorder,
    NotingRuntime,
    ShuffledRuntime,
    begin,
    faulty_recorder,
    on_workers,
    recorded,
    recording_config,
)
from tests.support.sabotage import Plan
from tests.support.small_run import run, save_models, small_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.data import store
from wmpo_ray.data.store import load_episodes
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout import evaluation
from wmpo_ray.rollout.evaluation import rollout_outcomes
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.live_metrics import PrometheusMeter
from wmpo_ray.runs.outcomes import read_outcomes


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("share_lost", [0.0, 0.3])
def test_order_and_losses_change_no_byte(recorded_run, tmp_path, monkeypatch, num, share_lost):
    path, config = (
        begin(tmp_path / "run"),
        RECORDING.model_copy(update={"faults": RECORDING.faults.model_copy(update={"max_crashes": 50})}),
    )
    runtime = ShuffledRuntime(num, share_lost)
    on_workers(monkeypatch, runtime, num)
    restarted = sum(do(path, stage, config, Listener())["restarted"] for stage in STAGES)
    assert recorded(path) == recorded(recorded_run)
    assert restarted == runtime.num_lost and bool(share_lost) == bool(restarted)
    assert runtime.most_open == num, "no more calls than workers"


def test_no_more_workers_start_than_there_are_batches(tmp_path, monkeypatch):
    runtime = ShuffledRuntime(0)
    on_workers(monkeypatch, runtime, 10)
    do(begin(tmp_path / "run"), "collect", RECORDING, Listener())
    assert runtime.num_spawned == 3, "the collected episodes have three batches, the held-out ones two"


def test_an_evaluation_is_that_of_one_process(tmp_path, monkeypatch):
    """Outcomes and videos are those of the loop that knows no parts and no workers, whatever is lost."""
    settings = {
        "environment": {"horizon": 48},
        "rollout": {**RECORDED["rollout"], "chunk_length": 2},
        "evaluation": {"num_starts": 24, "episodes_per_batch": 3},
        "faults": {"backoff_s": 0.001, "max_crashes": 50},
    }
    path, config, key = begin(tmp_path / "run"), Config.model_validate({**RECORDED, **settings}), (0, "evaluate")
    monkeypatch.setattr(evaluation, "MOST_TOGETHER", 3)
    seeds, environment = start_seeds("evaluate", 24, 0), make_environment(config.environment)
    whole, videos = rollout_outcomes(HalfSkilled(environment), environment, seeds, 1.0, key)
    assert 4 < whole.success.sum() < len(seeds) - 4, "more than are shown of each"
    on_workers(monkeypatch, ShuffledRuntime(0, 0.2), 3, HalfSkilledRecorder)
    metrics = do(path, "evaluate", config, Listener())
    outcomes = read_outcomes(path / "outcomes" / "base.json")
    assert (outcomes.starts, outcomes.success) == (seeds.tolist(), whole.success.tolist())
    assert outcomes.lengths == whole.lengths.tolist()
    assert outcomes.failures == {name: flags.tolist() for name, flags in whole.failures.items()}
    assert metrics["success_length_base"] == whole.lengths[whole.success].mean()
    with np.load(path / "videos" / "base.npz") as saved:
        assert np.array_equal(saved["frames"], np.asarray(videos.frames)) and len(saved["frames"]) >= 8
        assert np.array_equal(saved["success"], videos.success) and np.array_equal(saved["lengths"], videos.lengths)


def test_actions_and_videos_are_judged_by_any_number_of_workers(recorded_run, tmp_path, monkeypatch):
    with RunFolder.open(recorded_run, RECORDING) as folder:
        context = RunContext(RECORDING, folder, Listener(), SerialRuntime, force=False)
        episodes = context.episodes("collect")
        monkeypatch.setattr(evaluation, "RECORDING_BYTES", 3 * 25 * 16 * 16 * 3)  # batches of 3
        on_workers(monkeypatch, ShuffledRuntime(0, 0.2), 2)
        with context.recorder("gate") as workers:
            assert (workers.execute(episodes.seeds, episodes.actions) == episodes.success).all()
            assert "events" in workers.abilities
            events = workers.detect_events(episodes.frames)
    expected = make_environment(RECORDING.environment).detect_events(np.asarray(episodes.frames))
    assert events.keys() == expected.keys() and all((events[name] == expected[name]).all() for name in events)


def test_an_evaluation_on_the_way_is_shared_in_whole_batches(tmp_path, monkeypatch):
    """On two environment workers a training reports what it reports on one."""
    save_models(tmp_path / "models", small_config())
    monkeypatch.setattr(reality, "MOST_TOGETHER", 2)
    monkeypatch.setattr(evaluation, "MOST_TOGETHER", 2)
    settings = {"num_starts_on_the_way": 5, "every_updates": 2}
    reported, shares = [], []
    for num in (1, 2):
        config = small_config(environment_actors=num)
        config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=settings)})
        runtime = NotingRuntime("evaluate")
        _, lines = run(config, runtime, tmp_path / "models", tmp_path / f"run-{num}")
        reported.append([line for line in lines if "real/success_rate" in line])
        shares.append([seeds for _, seeds, _ in runtime.noted])
    assert reported[0] == reported[1] != []
    assert [[len(seeds) for seeds in each] for each in shares] == [[5, 5], [2, 3, 2, 3]]
    assert shares[1][0] + shares[1][1] == shares[0][0]


# -- what cannot be done -----------------------------------------------------------------------------------------------


def test_a_batch_that_crashes_every_worker_is_named_and_the_others_kept(recorded_run, tmp_path, monkeypatch):
    class Crashing(faulty_recorder(Plan(tmp_path / "plan"))):
        def record(self, batch, *args):
            if 100_004 in batch.seeds:
                raise RuntimeError("the simulator is unstable")
            return super().record(batch, *args)

    path = begin(tmp_path / "run")
    on_workers(monkeypatch, ShuffledRuntime(0), 2, Crashing)
    listener = Listener()
    with pytest.raises(
        UserError, match="100004 to 100007 crashed 3 environment workers.*unstable.*faults.max_crashes=3"
    ):
        do(path, "collect", RECORDING, listener)
    assert sum("was lost: RuntimeError: the simulator is unstable" in said for said in listener.said) == 3
    monkeypatch.undo()
    do(path, "collect", RECORDING, Listener())
    assert recorded(path).items() <= recorded(recorded_run).items()


def test_workers_that_do_not_start_end_the_stage(tmp_path, monkeypatch):
    class Broken:
        def __init__(self, config):
            raise OSError("libGL.so.1: cannot open shared object file")

    on_workers(monkeypatch, SerialRuntime(), 1, Broken)
    with pytest.raises(UserError, match=r"stage demos: .*libGL[\s\S]*faults.max_start_failures=3"):
        do(begin(tmp_path / "run"), "demos", RECORDING, Listener())


def test_packages_of_workers_need_processes_of_their_own():
    config = recording_config(environment_runtime_env={"pip": ["mujoco==2.3.2"]})
    check_runtime_env(config, serial=False)
    with pytest.raises(ConfigError, match="cluster.environment_runtime_env has pip.*--serial"):
        check_runtime_env(config, serial=True)
    assert num_processes(config) == (1, True) and num_processes(RECORDING) == (1, False)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_no_more_frames_are_held_than_are_written(tmp_path, monkeypatch):
    """Four times as many episodes take no more memory: one batch, and one row group of the file."""
    monkeypatch.setattr(store, "ROW_GROUP_BYTES", 2**16)

    def peak(num: int) -> int:
        settings = {**RECORDED, "collect": {"num_trajectories": num, "episodes_per_batch": 16}}
        config, path = Config.model_validate(settings), begin(tmp_path / f"run-{num}")
        with RunFolder.open(path, config) as folder:
            context = RunContext(config, folder, Listener(), SerialRuntime, force=False)
            target = context.trajectory_file("collect")
            tracemalloc.start()
            with context.recorder("collect") as workers:
                seeds = start_seeds("collect", num, 0)
                workers.record_policy("collect", seeds, (0, "collect"), context.acting_policy, target)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert len(load_episodes(target)) == num
        return most

    peak(16)  # imports
    few, many = peak(32), peak(128)
    frames = 96 * 25 * 16 * 16 * 3  # of the episodes that are more
    assert many - few < frames / 4


# -- on Ray ------------------------------------------------------------------------------------------------------------


def test_a_worker_killed_while_it_collects_costs_its_batch(recorded_run, tmp_path, monkeypatch):
    plan = Plan(tmp_path / "plan")
    plan.add("record-100004-done")  # it has written the batch, and does not come to say so
    path, meter = begin(tmp_path / "run"), PrometheusMeter("run")
    config = recording_config(environment_actors=2)
    monkeypatch.setattr(recorder, "RecordingActor", faulty_recorder(plan))
    monkeypatch.setattr(Services, "meter", meter)
    start_here(num_cpus=2)
    try:
        listener = Listener()
        metrics = do(path, "collect", config, listener, RayRuntime())
    finally:
        ray.shutdown()
    assert not plan.left and metrics["restarted"] == 1
    assert recorded(path).items() <= recorded(recorded_run).items()
    assert sum("environment-" in said and "was lost" in said for said in listener.said) == 1
    labels = {"run": "run", "role": "environment"}
    assert meter.registry.get_sample_value("ray_wmpo_worker_losses_total", labels) == 1


@pytest.mark.slow
def test_three_processes_with_an_environment_of_their_own(recorded_run, tmp_path, monkeypatch):
    """Their interpreter is another program, which sets a variable; all stages leave the same bytes."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ntouch {tmp_path}/used-$$\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    config = recording_config(
        environment_actors=3, environment_runtime_env={"py_executable": str(python), "env_vars": ["SIMULATOR=old"]}
    )
    path = begin(tmp_path / "run")
    start_here(num_cpus=4)
    try:
        for stage in STAGES:
            do(path, stage, config, Listener(), RayRuntime())
    finally:
        ray.shutdown()
    assert recorded(path) == recorded(recorded_run)
    assert len(list(tmp_path.glob("used-*"))) == 3 * 3
