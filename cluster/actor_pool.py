"""A pool of equal actors: who is idle, and a bounded number of replacements for those that die."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.runtime import Runtime


@dataclass(eq=False)
class Worker:
    actor: Any
    index: int
    epoch: int = 0  # counts replacements
    busy: bool = False


class ActorPool:
    """`spawn(index)` places one actor; `prepare(actor)` makes it ready to serve (weights) before its first call."""

    def __init__(
        self,
        runtime: Runtime,
        size: int,
        spawn: Callable[[int], Any],
        prepare: Callable[[Any], None],
        max_restarts: int,
    ):
        self._runtime, self._spawn, self._prepare = runtime, spawn, prepare
        self._restarts_left = max_restarts
        self.num_restarts = 0
        self.workers = [Worker(spawn(index), index) for index in range(size)]

    @property
    def actors(self) -> list[Any]:
        return [worker.actor for worker in self.workers]

    def idle(self) -> Worker | None:
        return next((worker for worker in self.workers if not worker.busy), None)

    def least_loaded(self, load: dict[int, int]) -> Worker:
        """The worker with the fewest calls under way, for pools whose actors queue their calls."""
        return min(self.workers, key=lambda worker: (load.get(worker.index, 0), worker.index))

    def replace(self, worker: Worker, error: Exception) -> None:
        """Put a new actor in the place of one that died; raises the original error once restarts are used up."""
        if self._restarts_left == 0:
            raise RuntimeError(
                f"{error}\nno restart is left for worker {worker.index}; raise faults.max_start_failures"
            ) from error
        self._restarts_left -= 1
        self.num_restarts += 1
        worker.actor = self._spawn(worker.index)
        worker.epoch += 1
        worker.busy = False
        self._prepare(worker.actor)

    def stop(self) -> None:
        for worker in self.workers:
            self._runtime.stop(worker.actor)
