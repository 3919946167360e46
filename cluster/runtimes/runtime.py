"""The interface of runtimes: actors run serially in this process (`serial_runtime.py`) or on Ray (`ray_runtime.py`).

Both have the same methods, so that the main loop and the actor classes are the same in both. During optimization only
`cluster/workers/pending.py` calls `wait`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from cluster.runtimes.process import held_by_process
from cluster.runtimes.resources import Resources
from wmpo_ray.core.timeline import Recording, record

Ref = Any


class ActorLostError(RuntimeError):
    """The process of an actor is gone; what it was doing may or may not have been executed."""


class HungError(ActorLostError):
    """An actor does not answer or makes no progress; its process is killed."""


class InputLostError(RuntimeError):
    """An input of a call was lost with the node that held it; the called actor itself is fine."""


class ProcessInfo(NamedTuple):
    pid: int
    node: str


class Work(NamedTuple):
    """Timing of a call in its worker. `start`: seconds since the epoch."""

    start: float
    seconds: float
    recording: Recording


class Answer(NamedTuple):
    value: Any
    work: Work | None = None  # None: not measured


class Beat(NamedTuple):
    """A heartbeat: a counter of finished work, and the memory of the process."""

    num_beats: int
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    gpu_utilisation: float = 0.0  # share of the last second or so


def measured(run: Callable[[], Any], num_returns: int) -> tuple[Any, ...]:
    """The results of a call, `num_returns` of them; the first one is an `Answer` with the timing of the call."""
    start, began = time.time(), time.perf_counter()
    with record() as recording:
        result = run()
    first, *rest = result if num_returns > 1 else (result,)
    return Answer(first, Work(start, time.perf_counter() - began, recording)), *rest


def unwrapped(arg: Any) -> Any:
    """An argument without the timing, if it is the answer of another call."""
    return arg.value if isinstance(arg, Answer) else arg


def beat_of(actor: Any) -> Beat:
    return Beat(getattr(actor, "num_beats", 0), *held_by_process())


class Runtime(Protocol):
    @property
    def available(self) -> dict[str, float]:
        """What there is: {"CPU": ..., "GPU": ...}."""

    @property
    def doors(self) -> dict[str, Any]:
        """Where it can be watched: `dashboard` (address, "" if there is none) and `metrics` (host:port); {} nowhere."""

    def clock(self) -> float:
        """Seconds, from any start."""

    def spawn(self, cls: type, *args: Any, resources: Resources, name: str) -> Any:
        """Ask for a process for an actor; never blocks. `build` runs the constructor."""

    def locate(self, actor: Any) -> Ref:
        """Resolves to the `ProcessInfo` of an actor once it has found a place."""

    def has_place(self, actor: Any) -> bool:
        """Whether an actor waits for its process alone: what it asked for is reserved, or nobody is at reserving it."""

    def build(self, actor: Any) -> Ref:
        """Run the constructor; resolves to the seconds it took, raises what it raises."""

    def beat(self, actor: Any) -> Ref:
        """Resolves to a `Beat`, at once even while the actor works."""

    def call(self, actor: Any, method: str, *args: Any, num_returns: int = 1) -> Any:
        """Start a call and return its reference, or a list of `num_returns`; references among `args` are resolved."""

    def tell(self, actor: Any, method: str, *args: Any) -> None:
        """Call a short method at once, even while the actor works, beside its other calls; nobody waits for it.

        The method must be safe in another thread. Nothing happens where the actor is gone or not constructed yet.
        """

    def beside(self, actor: Any, method: str, *args: Any) -> Ref:
        """Start a call that runs even while the actor works, after others like it; its reference.

        For what takes longer than `tell` may. The method must be safe in another thread.
        """

    def wait(self, refs: list[Ref], timeout_s: float | None = None) -> list[Ref]:
        """Block until one of the references is ready or the timeout ends; returns all that are ready."""

    def get(self, ref: Ref) -> Any:
        """The value of a ready reference. Raises what the call raised, ActorLostError, InputLostError."""

    def answer(self, ref: Ref) -> Answer:
        """The same for the first reference of a call, with the timing of the call."""

    def put(self, value: Any) -> Ref: ...

    def kill(self, actor: Any, process: ProcessInfo | None = None) -> None:
        """Kill an actor's process whatever it is doing, even if it is stopped."""

    def stop(self, actor: Any) -> None: ...

    def draining_nodes(self) -> dict[str, float]:
        """Draining node -> seconds until it is gone."""

    def shutdown(self) -> None: ...
