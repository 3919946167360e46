"""Law: the learner may begin while the batch fills, and nothing knows it: not a weight, not the ledger, not a fault."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import ray

from cluster.host.connection import start_here
from cluster.loop.feed import PartTrained, streams_updates
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.serial_runtime import SerialRuntime
from learners.learner_checkpoint import IN_UPDATE
from learners.policy_learner import PolicyLearner
from tests.support.sabotage import Plan, sabotage
from tests.support.small_run import finish, make_loop, save_models, small_config
from tests.support.streamed_runs import DriverKilled, StreamedRun, small_streamed_config, streamed_config
from wmpo_ray.config.run import Config
from wmpo_ray.policies.staged_weights import StagedWeights

SEEDS = range(25)


# -- with simulated actors ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> str:
    """The digest of a run whose learner waits for whole batches."""
    run = StreamedRun(streamed_config(stream=False), tmp_path_factory.mktemp("whole"))
    digest = run.play()
    assert run.world.num_parts == 0
    return digest


def test_every_order_of_arrival_leads_to_the_weights_of_whole_batches(undisturbed, tmp_path):
    given = set()
    for seed in SEEDS:
        (tmp_path / str(seed)).mkdir()
        run = StreamedRun(streamed_config(num_actors=1 + seed % 5), tmp_path / str(seed))
        assert run.play(seed) == undisturbed
        assert run.world.num_parts > 0
        given |= set(run.parts)
    assert len(given) >= 3, "more or less of the batch came before it was full"


def test_blocks_of_a_mini_batch_may_go_ahead_of_it_in_every_order_of_arrival(tmp_path):
    sizes = {"minibatch_trajectories": 8}
    digests, parts = set(), set()
    for seed in range(10):
        (tmp_path / str(seed)).mkdir()
        config = streamed_config(seed > 0, 1 + seed % 5, **sizes, groups_per_pass=seed % 2)
        run = StreamedRun(config, tmp_path / str(seed))
        digests.add(run.play(seed))
        parts |= {given % 4 for given in run.parts}
    assert len(digests) == 1 and len(parts) > 1, "groups of a mini-batch that was not complete were given"


def test_the_digest_of_the_simulated_learner_tells_of_mini_batches(undisturbed, tmp_path):
    assert StreamedRun(streamed_config(minibatch_trajectories=2), tmp_path).play() != undisturbed


def test_steps_that_go_ahead_change_no_weights_whoever_dies_between_them(undisturbed, tmp_path):
    num_last, num_killed = 0, 0
    for seed in range(24):
        (tmp_path / str(seed)).mkdir()
        run = StreamedRun(streamed_config(weights={"payload": "delta", "per_step": True}), tmp_path / str(seed))
        killed: list[str] = []

        def between(runtime, loop, seed=seed, killed=killed) -> None:
            holders = {worker.name for worker in loop.team.replicas.ready if worker.staged}
            victims = [actor for actor in runtime.actors if actor.name in (*holders, "learner-0")]
            if seed % 4 and holders and not killed:
                victim = victims[seed % len(victims)]
                killed.append(victim.name)
                runtime.end(victim)

        assert run.play(seed, between) == undisturbed
        assert seed % 4 or run.world.num_last_steps >= 3, "nobody was sent the last step alone"
        num_last += run.world.num_last_steps
        num_killed += bool(killed)
    assert num_killed >= 12 and num_last >= 24


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("after", range(1, 6))
def test_the_learner_may_die_between_any_two_parts(undisturbed, tmp_path, after, seed):
    run, killed = StreamedRun(streamed_config(), tmp_path), []

    def between(runtime, loop) -> None:
        if not killed and run.world.num_parts == after and not loop.feed.is_busy:
            (learner,) = [actor for actor in runtime.actors if actor.name == "learner-0"]
            killed.append(learner)
            runtime.end(learner)

    assert run.play(seed, between) == undisturbed
    assert killed and run.loop.team.num_restarts == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("after", range(1, 6))
def test_the_driver_may_die_between_any_two_parts(undisturbed, tmp_path, after, seed):
    run, versions = StreamedRun(streamed_config(), tmp_path), []

    def between(runtime, loop) -> None:
        if run.world.num_parts == after and not loop.feed.is_busy:
            versions.append(max(run.world.checkpoints, default=0))
            raise DriverKilled

    with pytest.raises(DriverKilled):
        run.play(seed, between)
    assert run.play(seed + 100) == undisturbed
    assert run.loop.resumed_from == versions[0], "a checkpoint is one between two updates"


# -- with real models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, small_config())
    return folder


def of_updates(lines: list[dict]) -> list[dict]:
    """Metrics of the updates, without those of times and of faults."""
    updates = [line for line in lines if "policy/loss" in line]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "faults/", "work/"))} for line in updates]


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory) -> tuple[str, list[dict]]:
    folder = tmp_path_factory.mktemp("whole")
    loop, log = make_loop(small_streamed_config(stream=False), SerialRuntime(), models, folder)
    return finish(loop, folder), of_updates(log.lines)


class NotedParts(PolicyLearner):
    calls: ClassVar[list[int]] = []

    def update_part(self, update, first, groups, *sources):
        self.calls.append(len(groups))
        return super().update_part(update, first, groups, *sources)


def test_weights_and_metrics_are_those_of_whole_batches(whole, models, tmp_path, monkeypatch):
    monkeypatch.setattr("learners.policy_learner.PolicyLearner", NotedParts)
    NotedParts.calls.clear()
    loop, log = make_loop(small_streamed_config(stream=True), SerialRuntime(), models, tmp_path)
    assert finish(loop, tmp_path) == whole[0]
    assert of_updates(log.lines) == whole[1]
    assert len(NotedParts.calls) >= 2, "the learner did not begin before its batch was full"


def test_steps_that_go_ahead_lead_to_the_same_weights(models, tmp_path, monkeypatch):
    """At a learning rate that changes some of the weights in a step."""
    taken, found = [], {}

    def noted(self, payload, state, finish=StagedWeights.finish):
        taken.append(payload.nbytes)
        return finish(self, payload, state)

    monkeypatch.setattr(StagedWeights, "finish", noted)
    for per_step in (False, True):
        weights, folder = {"payload": "delta", "dtype": "bfloat16", "per_step": per_step}, tmp_path / str(per_step)
        config = small_streamed_config(stream=True, weights=weights, learning_rate=3e-5)
        loop, log = make_loop(config, SerialRuntime(), models, folder)
        found[per_step] = finish(loop, folder), of_updates(log.lines)
        assert bool(taken) == per_step
        assert not [event for event in log.events if event["event"] == "weights.damaged"]
    assert found[True] == found[False]


@pytest.mark.parametrize(
    "training", [{"num_epochs": 2, "minibatch_trajectories": 6}, {"minibatch_trajectories": 8, "groups_per_pass": 1}]
)
def test_more_epochs_and_cut_groups_and_blocks_too(models, tmp_path, training):
    digests = {}
    for stream in (False, True):
        config = small_streamed_config(stream, every=0, **training)
        loop, _ = make_loop(config, SerialRuntime(), models, tmp_path / str(stream))
        digests[stream] = finish(loop, tmp_path / str(stream))
    assert digests[True] == digests[False]


KILLED_AT_A_PART = """
import os, signal, sys
from pathlib import Path
from cluster.runtimes.serial_runtime import SerialRuntime
from tests.support.streamed_runs import small_streamed_config
from tests.support.small_run import finish, make_loop
loop, _ = make_loop(small_streamed_config(stream=True, every=int(sys.argv[3])), SerialRuntime(), Path(sys.argv[1]), Path(sys.argv[2]))
loop.feed.trained = lambda: os.kill(os.getpid(), signal.SIGKILL)
finish(loop, Path(sys.argv[2]))
"""


@pytest.mark.parametrize("every", [0, 1])
def test_a_run_killed_between_parts_and_resumed_ends_with_the_same_weights(whole, models, tmp_path, every):
    command = [sys.executable, "-c", KILLED_AT_A_PART, str(models), str(tmp_path / "run"), str(every)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    checkpoints = tmp_path / "run" / "checkpoints"
    assert not list(checkpoints.glob("step-*")) and (checkpoints / IN_UPDATE).exists() == bool(every)
    loop, log = make_loop(small_streamed_config(stream=True, every=every), SerialRuntime(), models, tmp_path / "run")
    assert finish(loop, tmp_path / "run") == whole[0]
    losses = [[line["policy/loss"] for line in lines] for lines in (of_updates(log.lines), whole[1])]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_on_ray_with_a_learner_that_dies_at_a_part(whole, models, tmp_path, monkeypatch):
    start_here(num_cpus=4)
    try:
        plan = Plan(tmp_path / "plan")
        plan.add("after-part-1")
        sabotage(monkeypatch, plan)
        loop, log = make_loop(small_streamed_config(stream=True), RayRuntime(), models, tmp_path / "run")
        assert finish(loop, tmp_path / "run") == whole[0]
        assert not plan.left and loop.team.num_restarts == 1
        assert of_updates(log.lines) == whole[1]
    finally:
        ray.shutdown()


# -- where whole batches are waited for --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "streams"),
    [
        ({}, True),
        ({"grpo": {"num_epochs": 2}}, True),
        ({"reward": {"verify": {"enabled": True, "disputed": "unknown"}}}, True),
        ({"cluster": {"stream_updates": False}}, False),
        ({"filter": {"max_staleness": 1}}, False),
        ({"rollout": {"max_trajectories": 10**6}}, False),
        ({"placement": {"layout": "collocated"}}, False),
        ({"algorithm": {"kind": "rollout_bc"}}, False),
    ],
)
def test_the_configuration_decides_whether_the_learner_begins_early(settings, streams):
    assert streams_updates(Config.model_validate(settings)) is streams


def test_an_event_of_a_part_frees_the_learner_for_the_next(models, tmp_path):
    loop, log = make_loop(small_streamed_config(stream=True), SerialRuntime(), models, tmp_path)
    loop.feed.is_busy = True
    loop.handle(PartTrained(1))
    assert not loop.feed.is_busy
    log.close()
    loop.ledger.close()
    loop.team.stop()
