"""A pool of equal actors: who is there, who is lost, who is asked to come or go."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.runtimes.runtime import ProcessInfo, Runtime
from wmpo_ray.config.cluster import FaultsConfig


class Phase(enum.Enum):
    """What a worker is up to; in this order, and back to DOWN when it is lost."""

    DOWN = "down"  # lost, or not started yet
    PLACING = "placing"  # waits for resources
    BUILDING = "building"  # loads its models
    READY = "ready"


@dataclass(eq=False)
class Worker:
    """One place in a pool. Its actor may be replaced; `epoch` tells the answers of one from those of the next."""

    role: str
    index: int
    actor: Any = None
    epoch: int = 0
    phase: Phase = Phase.DOWN
    process: ProcessInfo | None = None
    task: Any = None  # what it is doing
    began_at: float = 0.0  # when it began that, in seconds since the epoch
    digest: str = ""  # hash of the weights that it has confirmed to hold
    version: int = -1  # updates behind them
    loading: str = ""  # hash of those on their way to it
    num_mismatches: int = 0  # in a row: weights that did not arrive as they were sent
    num_failures: int = 0  # in a row: actors that were lost before they had done anything
    not_before: float = 0.0  # when the next actor may be started
    lost_at: float | None = None
    build_s: float = 0.0
    is_leaving: bool = False  # does what it is at, takes nothing new
    beats: int = -1  # pieces of work it has told of
    moved_at: float = 0.0  # when it last told of another one, or began something
    asked_at: float | None = None  # when it was asked and has not answered yet

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"

    @property
    def is_free(self) -> bool:
        return self.phase is Phase.READY and self.task is None and not self.is_leaving


class StartError(RuntimeError):
    """Actor after actor was lost before it had done anything."""


class ActorPool:
    """`spawn(index)` asks for the process of an actor, `release(index)` gives up its place in the cluster."""

    def __init__(
        self,
        runtime: Runtime,
        role: str,
        size: int,
        faults: FaultsConfig,
        spawn: Callable[[int], Any],
        release: Callable[[int], None] = lambda index: None,
        is_single: bool = False,  # never two at once, not even while one leaves: the learner
    ):
        self._runtime, self._faults, self._spawn, self._release = runtime, faults, spawn, release
        self.is_single = is_single
        self.role = role
        self.target = size
        self.num_restarts = 0
        self.workers: list[Worker] = []
        self.fill()

    def resize(self, size: int) -> None:
        """Have `size` workers from now on; of too many, the last ones leave when they are free."""
        self.target = size
        staying = sorted((w for w in self.workers if not w.is_leaving), key=lambda worker: worker.index)
        for worker in staying[size:]:
            worker.is_leaving = True
        self.fill()

    def fill(self) -> None:
        """Make up the number of workers that are to be there; they are started at the next turn."""
        if self.size >= self.target or (self.is_single and self.workers):
            return
        taken = {worker.index for worker in self.workers}
        free = (index for index in range(len(taken) + self.target) if index not in taken)
        self.workers += [Worker(self.role, next(free)) for _ in range(self.target - self.size)]

    @property
    def size(self) -> int:
        """Workers that are there to stay, or on their way."""
        return sum(not worker.is_leaving for worker in self.workers)

    @property
    def ready(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.phase is Phase.READY]

    def free(self, weights: str | None) -> Worker | None:
        """A worker with nothing to do that holds the weights with this hash, and will for now; None: any."""
        held = (w for w in self.workers if w.is_free and weights in (None, w.digest) and not w.loading)
        return next(held, None)

    def start(self, worker: Worker) -> None:
        """Ask for a process."""
        worker.actor = self._spawn(worker.index)
        worker.phase = Phase.PLACING
        worker.moved_at = self._runtime.clock()

    def lose(self, worker: Worker, error: Exception) -> None:
        """The actor is gone or given up: what it still answers is late, another one takes its place after a pause.

        Raises StartError once `faults.max_start_failures` actors in a row were lost before they had done anything.
        """
        now = self._runtime.clock()
        if worker.phase is not Phase.DOWN:
            self._runtime.kill(worker.actor, worker.process)
        worker.num_failures += 1
        worker.epoch += 1
        self.num_restarts += 1
        worker.phase, worker.process, worker.digest, worker.loading = Phase.DOWN, None, "", ""
        worker.asked_at, worker.beats, worker.num_mismatches = None, -1, 0
        worker.lost_at = worker.lost_at or now
        pause = self._faults.backoff_s * 2 ** (worker.num_failures - 2) if worker.num_failures > 1 else 0.0
        worker.not_before = now + min(pause, self._faults.max_backoff_s)
        if worker.num_failures >= self._faults.max_start_failures:
            raise StartError(
                f"{worker.name}: {error}\n{worker.num_failures} actors in a row were lost there before they had done "
                f"anything; see the first error, or raise faults.max_start_failures={self._faults.max_start_failures}"
            ) from error

    def remove(self, worker: Worker) -> None:
        """Let a worker go for good."""
        if worker.phase is not Phase.DOWN:
            self._runtime.stop(worker.actor)
        worker.epoch += 1
        self.workers.remove(worker)
        self._release(worker.index)

    def stop(self) -> None:
        self.target = 0
        for worker in list(self.workers):
            self.remove(worker)
