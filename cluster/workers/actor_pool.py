"""A pool of identical actors: starts, replaces, adds and removes workers."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.runtimes.runtime import ProcessInfo, Runtime
from wmpo_ray.config.cluster import FaultsConfig


class Phase(enum.Enum):
    """Lifecycle of a worker; in this order, and back to DOWN when it is lost."""

    DOWN = "down"  # lost, or not started yet
    PLACING = "placing"  # waits for resources
    BUILDING = "building"  # loads its models
    READY = "ready"


@dataclass(eq=False)
class Worker:
    """One slot in a pool. Its actor may be replaced; `epoch` identifies the actor that an answer came from."""

    role: str
    index: int
    actor: Any = None
    epoch: int = 0
    phase: Phase = Phase.DOWN
    process: ProcessInfo | None = None
    task: Any = None  # the task in progress
    ahead: Any = None  # the task that follows
    began_at: float = 0.0  # start of the task, seconds since the epoch
    digest: str = ""  # hash of the weights that it has confirmed
    version: int = -1  # number of updates in those weights
    loading: str = ""  # hash of the weights being sent to it
    staged: str = ""  # name of the optimizer step whose weights it has put aside
    num_mismatches: int = 0  # consecutive times that weights arrived damaged
    num_failures: int = 0  # consecutive actors lost before finishing any task
    not_before: float = 0.0  # earliest start of the next actor
    lost_at: float | None = None
    build_s: float = 0.0
    is_leaving: bool = False  # finishes its task, takes no new one
    beats: int = -1  # progress counter of its last heartbeat
    moved_at: float = 0.0  # when that counter last moved, or a task began
    asked_at: float | None = None  # when the pending heartbeat was requested
    has_place: bool = False  # its resources were reserved when it was last asked about

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"

    @property
    def is_free(self) -> bool:
        return self.phase is Phase.READY and self.task is None and not self.is_leaving


class StartError(RuntimeError):
    """Several actors in a row were lost before finishing any task."""


class ActorPool:
    """`spawn(index)` requests an actor's process, `release(index)` returns its reserved resources."""

    def __init__(
        self,
        runtime: Runtime,
        role: str,
        size: int,
        faults: FaultsConfig,
        spawn: Callable[[int], Any],
        release: Callable[[int], None] = lambda index: None,
        is_single: bool = False,  # never two at once, not even while one is leaving: the learner
    ):
        self._runtime, self._faults, self._spawn, self._release = runtime, faults, spawn, release
        self.is_single = is_single
        self.role = role
        self.target = size
        self.num_restarts = 0
        self.workers: list[Worker] = []
        self.fill()

    def resize(self, size: int) -> None:
        """Set the number of workers; surplus ones, highest index first, leave once they are free."""
        self.target = size
        staying = sorted((w for w in self.workers if not w.is_leaving), key=lambda worker: worker.index)
        for worker in staying[size:]:
            worker.is_leaving = True
        self.fill()

    def fill(self) -> None:
        """Add workers up to the target; they are started at the next turn."""
        if self.size >= self.target or (self.is_single and self.workers):
            return
        taken = {worker.index for worker in self.workers}
        free = (index for index in range(len(taken) + self.target) if index not in taken)
        self.workers += [Worker(self.role, next(free)) for _ in range(self.target - self.size)]

    @property
    def size(self) -> int:
        """Number of workers that are not leaving."""
        return sum(not worker.is_leaving for worker in self.workers)

    @property
    def ready(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.phase is Phase.READY]

    def free(self, weights: str | None) -> Worker | None:
        """An idle worker that has the weights with this hash and is not loading others; None: any weights."""
        idle = (w for w in self.workers if w.is_free and weights in (None, w.digest) and not w.loading)
        return next(idle, None)

    def with_room(self, task: Any) -> Worker | None:
        """The worker, busy for longest, behind whose task this one can be lined up."""
        found = (
            worker
            for worker in self.ready
            if worker.task is not None and worker.task.may_be_lined_up and worker.ahead is None
            if not worker.is_leaving and not worker.loading and worker.digest == task.weights
        )
        return min(found, key=lambda worker: worker.began_at, default=None) if task.may_be_lined_up else None

    def start(self, worker: Worker) -> None:
        """Request a process for the worker."""
        worker.actor = self._spawn(worker.index)
        worker.phase, worker.has_place = Phase.PLACING, False
        worker.moved_at = self._runtime.clock()

    def lose(self, worker: Worker, error: Exception) -> None:
        """Drop a lost actor: its later answers are ignored, and a new one starts after a backoff.

        Raises StartError once `faults.max_start_failures` actors in a row were lost before finishing any task.
        """
        now = self._runtime.clock()
        if worker.phase is not Phase.DOWN:
            self._runtime.kill(worker.actor, worker.process)
        if worker.phase is Phase.PLACING and worker.has_place:
            self._release(worker.index)  # no process came up there; the next one is given another place
        worker.num_failures += 1
        worker.epoch += 1
        self.num_restarts += 1
        worker.phase, worker.process, worker.digest, worker.loading = Phase.DOWN, None, "", ""
        worker.staged, worker.asked_at, worker.beats, worker.num_mismatches = "", None, -1, 0
        worker.lost_at = worker.lost_at or now
        pause = self._faults.backoff_s * 2 ** (worker.num_failures - 2) if worker.num_failures > 1 else 0.0
        worker.not_before = now + min(pause, self._faults.max_backoff_s)
        if worker.num_failures >= self._faults.max_start_failures:
            raise StartError(
                f"{worker.name}: {error}\n{worker.num_failures} actors in a row were lost before finishing any "
                f"task; see the first error, or raise faults.max_start_failures={self._faults.max_start_failures}"
            ) from error

    def remove(self, worker: Worker) -> None:
        """Stop a worker and remove it from the pool."""
        if worker.phase is not Phase.DOWN:
            self._runtime.stop(worker.actor)
        worker.epoch += 1
        self.workers.remove(worker)
        self._release(worker.index)

    def stop(self) -> None:
        self.target = 0
        for worker in list(self.workers):
            self.remove(worker)
