"""Tasks for workers, and the events of a worker's lifecycle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from cluster.runtimes.runtime import Beat, ProcessInfo, Work
from cluster.workers.actor_pool import Worker


def ignore(_error: Exception) -> None:
    pass


@dataclass(eq=False)
class Task:
    """A call that is repeated until it is answered. `order`: smaller ones first."""

    role: str
    method: str
    args: tuple
    order: tuple[int, ...]
    done: Callable[[Any, Any], Any]  # (value of the first reference, all references) -> event
    given_up: Callable[[Exception], None]  # its workers were lost `max_crashes` times
    input_lost: Callable[[Exception], None] = ignore  # its input has been lost
    is_wanted: Callable[[], bool] = lambda: True  # whether to repeat it after its worker was lost
    num_returns: int = 1
    weights: str | None = None  # hash of the weights that the worker must have
    max_crashes: int = 3
    num_crashes: int = 0
    worked: Callable[[Worker, Work], None] = lambda worker, work: None  # receives the timing of the call
    # What a busy worker is told (method, arguments) when this task is to follow, and when it is taken back; None: no task
    # is lined up. A worker may begin it ahead.
    lined_up: tuple[tuple, tuple] | None = None
    is_suspect: bool = False  # its worker was lost when it was lined up: perhaps through it

    @property
    def may_be_lined_up(self) -> bool:
        """Not beside a task that may be what crashes workers: which of the two did could not be told."""
        return self.lined_up is not None and not self.num_crashes and not self.is_suspect


class Joined(NamedTuple):
    """A worker has loaded its models."""

    worker: Worker


class Located(NamedTuple):
    worker: Worker
    process: ProcessInfo


class Built(NamedTuple):
    worker: Worker
    seconds: float


class Done(NamedTuple):
    worker: Worker
    task: Task
    value: Any
    refs: Any


class HeardBeat(NamedTuple):
    worker: Worker
    beat: Beat
