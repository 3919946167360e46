"""One run of the real main loop with simulated actors at full-size service times."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.coordinator_scaling import GROUPS_PER_UPDATE
from benchmarks.measured_runtime import MeasuredLedger, MeasuredRuntime, Times, read_service_times
from cluster.loop.ledger import FILE_NAME, State
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import ModelPaths, Team
from cluster.loop.train import TrainingLoop
from cluster.recipes.optimize import rollout_folders
from cluster.simulation.simulated_actors import SimulatedWorld
from wmpo_ray.algorithms.group_queue import ReadyBatch
from wmpo_ray.config.run import Config
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.types import Verdict

GROUP_SIZE = 8
ACTORS_PER_REWARD_ACTOR = 16


class Setup(NamedTuple):
    actors: int
    groups_per_request: int = 1
    trajectories_per_request: int = 0  # 0: those of the groups
    fill_probability: float = 0.0
    learner_gpus: int = 8
    staleness: int = 0
    speculation: float = 0.0
    keep_rate: float = 0.5
    updates: int = 4
    heartbeat_every_s: float = 2.0
    speed: float = 1.0  # all actors this much faster than full-size ones
    stream: bool = True  # the learner works while the batch fills
    groups_per_pass: int = 0  # that it goes through at once, summing up gradients; 0: a mini-batch


class Outcome(NamedTuple):
    """Figures of one run; the first update, in which models are loaded, is left out of `update_s`."""

    update_s: float  # virtual seconds of an update
    driver_s: float  # seconds of the driver's own, for all updates
    virtual_s: float
    num_events: int  # lines of the ledger
    surplus_share: float  # of the groups whose imagination was begun, those that no batch needed
    displacing_share: float  # of the actors' seconds, those for such groups while a needed one waited for an actor
    groups_per_update: float  # groups whose imagination was begun
    exposed_share: float  # of the learner's time, what comes after the batch is full


def make_config(setup: Setup) -> Config:
    rollout = {
        "group_size": GROUP_SIZE,
        "groups_per_update": GROUPS_PER_UPDATE,
        "groups_per_request": setup.groups_per_request,
        "trajectories_per_request": setup.trajectories_per_request,
        "speculation": setup.speculation,
        "max_attempts": 4096,
    }
    cluster = {
        "imagination_actors": setup.actors,
        "reward_actors": max(1, setup.actors // ACTORS_PER_REWARD_ACTOR),
        "stream_updates": setup.stream,
    }
    return Config.model_validate(
        {
            "rollout": rollout,
            "grpo": {"num_updates": setup.updates, "groups_per_pass": setup.groups_per_pass},
            "filter": {"max_staleness": setup.staleness, "fill_probability": setup.fill_probability},
            "evaluation": {"every_updates": 0},
            "cluster": cluster,
            "faults": {
                "heartbeat_every_s": setup.heartbeat_every_s,
                "heartbeat_timeout_s": 5 * setup.heartbeat_every_s,
            },
        }
    )


def simulate(setup: Setup, seed: int = 0) -> Outcome:
    """One run of the real main loop, with a ledger on the disk."""
    config = make_config(setup)
    starts = [StartState(np.zeros((1, 2, 2, 3), np.uint8), "", index) for index in range(128)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = SimulatedWorld(setup.keep_rate)
        times = read_service_times(config.rollout.request_size / GROUP_SIZE, setup.learner_gpus, setup.speed)
        runtime = MeasuredRuntime(world.stand_ins(), times, seed, at_wait=lambda: note_waiting(loop, runtime))
        log, ledger = Times(runtime.clock), MeasuredLedger(folder / FILE_NAME)
        team = Team(config, runtime, ModelPaths(folder, folder, None, folder, folder))
        loop = TrainingLoop(config, team, starts, ledger, log, Rollouts(config, team, ledger, *rollout_folders(folder)))
        full_at = note_full_batches(loop, runtime.clock)
        started = time.thread_time()
        loop.run(str(folder / "policy"))
        driver_s = time.thread_time() - started - runtime.own_s + ledger.waited_s
        team.stop()
        ledger.close()
    surplus = {
        key
        for key, record in ledger.records.items()
        if record.state is State.REJECTED and record.facts["verdict"] == Verdict.SURPLUS.value
    }
    gaps = [later - earlier for earlier, later in zip(log.updates, log.updates[1:], strict=False)]
    return Outcome(
        statistics.mean(gaps),
        driver_s,
        runtime.clock(),
        ledger.offset,
        len(runtime.begun & surplus) / len(runtime.begun),
        runtime.displacing_share(surplus),
        len(runtime.begun) / setup.updates,
        sum(end - full for full, end in zip(full_at, log.updates, strict=True)) / runtime.learner_s,
    )


def note_waiting(loop: TrainingLoop, runtime: MeasuredRuntime) -> None:
    task = loop.crew.next_waiting("imagination")
    runtime.waiting.note(runtime.clock(), None if task is None else task.args[0].kept_groups[0].key)


def note_full_batches(loop: TrainingLoop, clock: Callable[[], float]) -> list[float]:
    """When each batch was full: a list that the run fills."""
    times: list[float] = []
    finish = loop.feed.finish

    def noted(batch: ReadyBatch, spooled: bool = False) -> None:
        times.append(clock())
        finish(batch, spooled)

    loop.feed.finish = noted  # type: ignore[method-assign]
    return times
