"""Random faults for a run on a `CrashableCluster`: actors, nodes, the GCS and the driver are killed, stopped, preempted.

A driver that goes is started again with `--resume`, as the restart of its job would; a node that goes is replaced by
another, as an autoscaler would; a GCS that goes is started again on its tables.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import ray

from benchmarks.soak_cluster import CrashableCluster, actors_of
from cluster.host.preemption import EXIT_PREEMPTED

ROOT = Path(__file__).parents[1]
ROLES = {
    "imagination": "RolloutActor",
    "reward": "RewardActor",
    "learner": "GrpoLearner",
    "environment": "EnvironmentActor",
}
WEIGHTS = {  # how often, relative to each other
    "kill imagination": 4.0,
    "kill reward": 2.0,
    "kill learner": 2.0,
    "kill environment": 0.5,
    "stop imagination": 1.5,
    "stop reward": 1.0,
    "stop learner": 1.0,
    "remove node": 1.5,
    "kill gcs": 1.5,
    "kill driver": 1.0,
    "preempt driver": 0.5,
}
PREEMPTED = (0, EXIT_PREEMPTED, -signal.SIGTERM)  # exit codes after SIGTERM; the last one before the run has begun
PREEMPTION_S = 10.0  # between SIGTERM and SIGKILL
MAX_CRASHES = 5  # of the driver by itself, before the soak gives up
MAX_GCS_AWAY_S = 3.0
SETTLE_S = 6.0  # after a node has gone, so that the losses that follow are known to be its


class Fault(NamedTuple):
    time: float  # of the clock on the wall
    kind: str
    recovery_s: float | None = None  # where it is known at once
    lost: tuple[str, ...] = ()  # roles of the actors that went with a node


class Driver:
    """The process of the run. `crashes` are its ends that nobody brought about: (exit code, last lines)."""

    def __init__(self, command: Sequence[str], log: Path):
        self._command, self._log = list(command), log
        self.num_starts = 0
        self.crashes: list[tuple[int, str]] = []
        self.start()

    def start(self) -> None:
        self.num_starts += 1
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    @property
    def is_done(self) -> bool:
        """Whether the run has reached its end; one that stopped by itself before is started again."""
        code = self._process.poll()
        if code not in (None, 0):
            self._note_crash(code)
            self.start()
        return code == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def preempt(self) -> None:
        """SIGTERM, some time to leave, then SIGKILL; an exit code that means anything else is a crash."""
        self._process.terminate()
        try:
            code = self._process.wait(PREEMPTION_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return
        if code not in PREEMPTED:
            self._note_crash(code)

    def _note_crash(self, code: int) -> None:
        self.crashes.append((code, self._log.read_text()[-4000:]))
        if len(self.crashes) > MAX_CRASHES:
            raise RuntimeError(f"the driver ended with {code} by itself:\n{self.crashes[-1][1]}")


class Tormentor:
    """Draws faults and brings them about. `when_driver_is_gone` is called before the driver is started again."""

    def __init__(
        self,
        cluster: CrashableCluster,
        driver: Driver,
        chance: random.Random,
        when_driver_is_gone: Callable[[], None] = lambda: None,
    ):
        self.cluster, self.driver, self.chance = cluster, driver, chance
        self._when_driver_is_gone = when_driver_is_gone

    def inject(self) -> Fault | None:
        """One random fault; None where what was drawn is not there at the moment."""
        (kind,) = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        what, target = kind.split()
        if target == "node":
            return self._remove_node(kind)
        if target == "gcs":
            return self._kill_gcs(kind)
        if target == "driver":
            return self._end_driver(kind)
        return self._signal(kind, target, signal.SIGKILL if what == "kill" else signal.SIGSTOP)

    def _signal(self, kind: str, role: str, number: signal.Signals) -> Fault | None:
        actors = self.cluster.actors(ROLES[role])
        if not actors:
            return None
        fault = Fault(time.time(), kind)
        try:
            os.kill(self.chance.choice(actors), number)
        except ProcessLookupError:
            return None
        return fault

    def _remove_node(self, kind: str) -> Fault:
        node = self.chance.choice(self.cluster.nodes)
        lost = tuple(role for role, cls in ROLES.items() for _ in actors_of(node, cls))
        started = time.time()
        self.cluster.crash_node(node)
        self.cluster.add_node()
        time.sleep(max(0.0, started + SETTLE_S - time.time()))
        return Fault(started, kind, lost=lost)

    def _kill_gcs(self, kind: str) -> Fault:
        fault_at = time.time()
        self.cluster.restart_gcs(self.chance.uniform(0, MAX_GCS_AWAY_S)).result()
        started = time.monotonic()
        probe = ray.remote(Probe).options(num_cpus=0).remote()
        ray.get(probe.answer.remote())
        recovery_s = time.monotonic() - started
        ray.kill(probe)
        return Fault(fault_at, kind, recovery_s)

    def _end_driver(self, kind: str) -> Fault | None:
        if not self.cluster.actors(ROLES["imagination"]):
            return None  # it has not come to anything yet
        fault = Fault(time.time(), kind)
        self.driver.kill() if kind == "kill driver" else self.driver.preempt()
        self._when_driver_is_gone()
        self.driver.start()
        return fault


class Probe:
    """Shows that the cluster can bring up an actor."""

    def answer(self) -> bool:
        return True
