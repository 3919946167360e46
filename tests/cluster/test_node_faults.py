"""Nodes, the head's GCS and the driver may go at any time: the run ends with the weights of the undisturbed one.

Run as a program this is a driver that notes what its actors do:
`python -m tests.cluster.test_node_faults ADDRESS MODELS FOLDER NAME`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import ray

from actors.rollout_actor import RolloutActor
from benchmarks.soak_cluster import CrashableCluster
from cluster.host.ray_private import Node
from cluster.loop.learner_driver import Saved
from cluster.loop.ledger import FILE_NAME, Ledger, State
from cluster.loop.rollouts import Imagined, Scored
from cluster.loop.team import WeightsLoaded
from cluster.loop.train import TrainingLoop
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.serial_runtime import SerialRuntime
from cluster.workers.actor_pool import Worker
from learners.policy_learner import PolicyLearner
from tests.support.faulty_config import faulty_config
from tests.support.sabotage import recast
from tests.support.small_run import finish, make_loop, save_models
from wmpo_ray.config.run import Config

SPOT = {"market": "spot"}
NOTES = "notes.txt"


def config_on_spot_nodes(**changes) -> Config:
    """Those who imagine and score stand on nodes that may go."""
    place = {"cpus": 0.2, "labels": [f"{key}={value}" for key, value in SPOT.items()]}
    return faulty_config(placement={"imagination": place, "reward": place}, **changes)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, faulty_config())
    return folder


@pytest.fixture(scope="module")
def undisturbed(models, tmp_path_factory) -> tuple[str, TrainingLoop]:
    folder = tmp_path_factory.mktemp("undisturbed")
    loop, _ = make_loop(faulty_config(), SerialRuntime(), models, folder)
    return finish(loop, folder), loop


@pytest.fixture(scope="module")
def cluster() -> Iterator[CrashableCluster]:
    # Whatever an actor returns stays on its node until somebody asks for it, as large results do.
    settings = {"RAY_max_direct_call_object_size": "100"}
    with CrashableCluster(num_cpus=2, nodes=2, node_cpus=1, labels=SPOT, environment=settings) as cluster:
        ray.init(address=cluster.address, logging_level="warning", log_to_driver=False)
        yield cluster
        ray.shutdown()


def when(loop: TrainingLoop, kind: type, update: int, action: Callable) -> None:
    """Do something as soon as the loop has dealt with the first event of a kind for an update."""
    original, left = loop.handle, [action]

    def handle(event) -> None:
        original(event)
        if isinstance(event, kind) and update_of(event) == update and left:
            left.pop()(event)

    loop.handle = handle  # type: ignore[method-assign]


def update_of(event) -> int:
    match event:
        case WeightsLoaded():
            return event.version.num_updates
        case Saved():
            return -1
    return event.request.groups[0].update


def outcomes(ledger: Ledger) -> dict:
    return {key: (r.state, r.facts.get("verdict"), r.facts.get("success")) for key, r in ledger.records.items()}


def node_of(cluster: CrashableCluster, ref) -> object:
    """The node that alone holds an object."""
    (there,) = ray.experimental.get_object_locations([ref])[ref]["node_ids"]
    return next(node for node in cluster.nodes if node.node_id == there)


@pytest.mark.slow
def test_a_node_may_vanish_with_what_it_holds(undisturbed, models, tmp_path, cluster):
    loop, log = make_loop(config_on_spot_nodes(), RayRuntime(), models, tmp_path)
    from_disk: list[int] = []
    original = loop.train

    def train(batch, spooled=False) -> None:
        from_disk.extend([batch.update] * spooled)
        original(batch, spooled)

    loop.train = train

    def crash_and_replace(ref) -> None:
        cluster.crash_node(node_of(cluster, ref))
        cluster.add_node()

    when(loop, Scored, 1, lambda event: crash_and_replace(event.trajectories.ref))
    when(loop, Imagined, 2, lambda event: crash_and_replace(event.videos))
    assert finish(loop, tmp_path) == undisturbed[0]
    assert outcomes(loop.ledger) == outcomes(undisturbed[1].ledger)
    assert 1 in from_disk, "the learner read from the disk what had gone with the node"
    lost = {fact["worker"].split("-")[0] for fact in log.events if fact["event"] == "worker.lost"}
    assert "imagination" in lost


@pytest.mark.slow
def test_the_gcs_may_be_killed_and_actors_while_it_is_away(undisturbed, models, tmp_path, cluster):
    loop, _ = make_loop(config_on_spot_nodes(), RayRuntime(), models, tmp_path)
    started: list[Future] = []

    def kill(event) -> None:
        started.append(cluster.restart_gcs(away_s=1.5))
        # All of them: the run could end without a single one before anybody knows that it has gone.
        for worker in loop.crew.pools["imagination"].workers:
            if worker.process is not None:
                os.kill(worker.process.pid, signal.SIGKILL)

    when(loop, Imagined, 1, kill)
    assert finish(loop, tmp_path) == undisturbed[0]
    assert outcomes(loop.ledger) == outcomes(undisturbed[1].ledger)
    assert loop.crew.pools["imagination"].num_restarts >= 1
    started[0].result()


@pytest.mark.slow
def test_a_node_that_is_taken_away_is_left_in_time(undisturbed, models, tmp_path, cluster, monkeypatch):
    notice_s, hand_back_s = 30.0, 28.0
    monkeypatch.setattr("cluster.loop.team.HAND_BACK_S", hand_back_s)
    monkeypatch.setattr("cluster.loop.team.NODES_EVERY_S", 0.5)
    # A request that is blamed once is given up.
    loop, log = make_loop(config_on_spot_nodes(faults={"max_crashes": 1}), RayRuntime(), models, tmp_path)
    drained: list[Node] = []
    stopped: list[Worker] = []
    noticed: list[float] = []
    left: list[float] = []

    def stop(event) -> None:
        os.kill(event.worker.process.pid, signal.SIGSTOP)  # it will not finish what it is given next
        stopped.append(event.worker)

    def drain(event) -> None:
        node = next(n for n in cluster.nodes if n.node_id == stopped[0].process.node)
        cluster.drain_node(node, notice_s)
        drained.append(node)
        noticed.append(time.monotonic())

    def look(event) -> None:
        workers = [w for pool in loop.crew.pools.values() for w in pool.workers if w.process is not None]
        assert all(w.process.node != drained[0].node_id for w in workers)
        left.append(time.monotonic())

    when(loop, WeightsLoaded, 1, stop)
    when(loop, Imagined, 1, drain)
    when(loop, Saved, -1, look)
    assert finish(loop, tmp_path) == undisturbed[0]
    assert outcomes(loop.ledger) == outcomes(undisturbed[1].ledger)
    assert left[0] - noticed[0] < notice_s
    lost = [fact["error"] for fact in log.events if fact["event"] == "worker.lost"]
    assert lost and all("its node is being taken away" in error for error in lost)
    cluster.crash_node(drained[0])
    cluster.add_node()


# -- the driver --------------------------------------------------------------------------------------------------


def noting_classes(path: Path, name: str) -> dict[str, type]:
    """Actors that note every step and every imagined group as `name what ...` in a file."""

    # Made inside a function: they travel to the workers by value.
    def note(*words: object) -> None:
        with open(path, "a") as file:
            file.write(" ".join(map(str, (name, *words))) + "\n")

    class NotingImagination(RolloutActor):
        def rollout(self, request, spool=None):
            for group in request.kept_groups:
                note("imagine", *group.key)
            return super().rollout(request, spool)

    class NotingLearner(PolicyLearner):
        def take_step(self, minibatch):
            note("step", self.num_updates, minibatch.first)
            return super().take_step(minibatch)

    return {"RolloutActor": NotingImagination, "PolicyLearner": NotingLearner}


def drive(address: str, models: Path, folder: Path, name: str) -> None:
    import cluster.loop.team

    cluster.loop.team.actor_class = recast(noting_classes(folder / NOTES, name))
    config = config_on_spot_nodes(cluster={"imagination_actors": 1})  # a start takes the less time
    loop, _ = make_loop(config, RayRuntime(address), models, folder)
    (folder / "digest").write_text(finish(loop, folder))


def read_notes(folder: Path) -> list[list[str]]:
    path = folder / NOTES
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def settled(folder: Path) -> set[tuple[int, int]]:
    """Groups that the ledger on the disk has admitted or trained."""
    copy = folder / "copy-of-ledger"
    shutil.copy(folder / FILE_NAME, copy)  # opening a ledger cuts off its torn line
    ledger = Ledger(copy)
    ledger.close()
    return {key for key, record in ledger.records.items() if record.state in (State.ADMITTED, State.TRAINED)}


@pytest.mark.slow
def test_the_driver_may_be_killed_at_any_time(undisturbed, models, tmp_path, cluster):
    chance = random.Random(0)
    done: list[set[tuple[int, int]]] = []  # before each start of the driver
    size = len((Path(undisturbed[1].ledger.path)).read_bytes())
    for number, share in enumerate((0.3, 0.8)):
        driver = start_driver(cluster, models, tmp_path, number)
        grown_to = size * (share + chance.uniform(-0.15, 0.1))
        while driver.poll() is None and not is_grown(tmp_path / FILE_NAME, grown_to):
            time.sleep(0.01)
        driver.kill()
        assert driver.wait() == -signal.SIGKILL, "the run was over before the driver was killed"
        done.append(settled(tmp_path))
    assert start_driver(cluster, models, tmp_path, len(done)).wait(180) == 0
    assert (tmp_path / "digest").read_text() == undisturbed[0]
    notes = read_notes(tmp_path)
    imagined = {(int(name), (int(a), int(b))) for name, what, a, b in notes if what == "imagine"}
    again = [(name, key) for name, key in imagined if name and any(key in before for before in done[:name])]
    assert not again, "admitted groups were imagined again"
    steps = Counter((int(a), int(b)) for _, what, a, b in notes if what == "step")
    config = faulty_config()
    trajectories = config.rollout.groups_per_update * config.rollout.group_size
    rows = range(0, trajectories, config.grpo.minibatch_trajectories)
    assert set(steps) == {(update, row) for update in range(config.grpo.num_updates) for row in rows}
    assert steps.total() <= len(steps) + len(done), "no kill cost more than one optimizer step"


def start_driver(cluster: CrashableCluster, models: Path, folder: Path, number: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.cluster.test_node_faults", cluster.address, models, folder, number]
    return subprocess.Popen([str(word) for word in command])


def is_grown(path: Path, size: float) -> bool:
    return path.exists() and path.stat().st_size >= size


if __name__ == "__main__":
    drive(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
