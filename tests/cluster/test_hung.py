"""A worker that has a place and gets no process there is asked for again; one that waits for its place is left alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import ray

from benchmarks.soak_cluster import CrashableCluster
from cluster.host.connection import start_here
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import Runtime
from cluster.simulation.simulated_parts import SimulatedRef
from cluster.simulation.simulated_runtime import SimulatedRuntime
from cluster.workers.actor_pool import ActorPool, Phase
from cluster.workers.crew import Crew
from cluster.workers.placement import Bundle, PlacementBook, Reservation
from wmpo_ray.config.cluster import FaultsConfig
from wmpo_ray.config.run import Config

FAULTS = FaultsConfig(start_timeout_s=20, heartbeat_every_s=1)


class Idler:
    """Stands in for an actor."""

    num_beats = 0


class Forgetful(SimulatedRuntime):
    """Never starts the first `num_forgotten` actors; their places are reserved from `reserved_at` on, in seconds."""

    def __init__(self, num_forgotten: int, reserved_at: float = 0.0):
        super().__init__({Idler: Idler}, lambda cls, method, rng: 0.5)
        self.num_forgotten, self.reserved_at, self.num_asked = num_forgotten, reserved_at, 0

    def has_place(self, actor: Any) -> bool:
        self.num_asked += 1
        return self.clock() >= self.reserved_at

    def locate(self, actor: Any) -> SimulatedRef:
        if self.num_forgotten > 0:
            self.num_forgotten -= 1
            return SimulatedRef(None, actor)  # nobody will answer
        return super().locate(actor)


def crew_of(
    runtime: Runtime,
    faults: FaultsConfig = FAULTS,
    place: Callable[[int], Resources] = lambda index: Resources(),
    release: Callable[[int], None] = lambda index: None,
) -> tuple[Crew, ActorPool]:
    crew = Crew(runtime, faults)

    def spawn(index: int) -> Any:
        return runtime.spawn(Idler, resources=place(index), name=f"idler-{index}")

    crew.pools["idler"] = ActorPool(runtime, "idler", 1, faults, spawn, release)
    return crew, crew.pools["idler"]


def serve(crew: Crew, pool: ActorPool, until_s: float) -> float:
    """When the worker was ready, or `until_s`; seconds of the runtime's clock."""
    while not pool.ready and crew.runtime.clock() < until_s:
        crew.turn()
        list(crew.events(crew.pending.wait(0.5)))
    return crew.runtime.clock()


@pytest.mark.parametrize("num_forgotten", [1, 2])
def test_an_actor_that_was_forgotten_is_asked_for_again(num_forgotten):
    released: list[int] = []
    crew, pool = crew_of(Forgetful(num_forgotten), release=released.append)
    ready_at = serve(crew, pool, 300)
    assert num_forgotten * FAULTS.start_timeout_s < ready_at < num_forgotten * (2 * FAULTS.start_timeout_s + 5)
    assert pool.num_restarts == num_forgotten and released == [0] * num_forgotten, "each has a place of its own"


def test_one_that_waits_for_a_node_is_not_and_has_all_its_time_once_there_is_one():
    runtime = Forgetful(1, reserved_at=500)
    crew, pool = crew_of(runtime)
    assert serve(crew, pool, 500) == 500 and pool.num_restarts == 0
    assert pool.workers[0].phase is Phase.PLACING
    assert runtime.num_asked <= 500 / FAULTS.start_timeout_s, "the head is asked rarely"
    assert 500 + FAULTS.start_timeout_s < serve(crew, pool, 900) < 900 and pool.num_restarts == 1


def test_what_a_cluster_says_of_places():
    start_here(num_cpus=1)
    try:
        runtime = RayRuntime()
        there, nowhere = (Reservation(Bundle("one", (("reward", 0),), cpus, 0)) for cpus in (0.5, 64))
        found, waiting = (
            runtime.spawn(Idler, resources=Resources(num_cpus=cpus, bundle=place.place), name="idler")
            for place, cpus in ((there, 0.5), (nowhere, 64))
        )
        ends_at = time.monotonic() + 30
        while not runtime.has_place(found) and time.monotonic() < ends_at:
            time.sleep(0.1)
        assert runtime.has_place(found) and not runtime.has_place(waiting)
        free = runtime.spawn(Idler, resources=Resources(), name="idler")
        labelled = runtime.spawn(Idler, resources=Resources(labels=("zone=a",)), name="idler")
        own = runtime.spawn(Idler, resources=Resources(runtime_env={"env_vars": {"A": "1"}}), name="idler")
        there.release()
        assert runtime.has_place(found), "it is nobody's any more"
        assert runtime.has_place(free) and not runtime.has_place(labelled) and not runtime.has_place(own)
    finally:
        ray.shutdown()


def test_a_head_that_ends_while_places_are_reserved():
    """Ray then says for ever that the places are there, and gives no process to an actor in them."""
    with CrashableCluster(num_cpus=1, nodes=1, node_cpus=4, labels={"pool": "extra"}) as cluster:
        runtime = RayRuntime(cluster.address)
        try:
            config = Config.model_validate({"placement": {"reward": {"cpus": 0.3, "labels": ["pool=extra"]}}})
            book = PlacementBook(config, Reservation)
            faults = FaultsConfig(start_timeout_s=4, heartbeat_every_s=0.5, max_start_failures=9)
            crew, pool = crew_of(
                runtime, faults, lambda index: book.place("reward", index), lambda index: book.release("reward", index)
            )
            crew.turn()
            time.sleep(0.05)
            cluster.restart_gcs(away_s=1.0).result()
            serve(crew, pool, runtime.clock() + 60)
            assert pool.ready
            crew.stop()
        finally:
            runtime.shutdown()
