"""Where actors run: one after the other in this process, or on Ray (`cluster/ray_runtime.py`).

Both give the same few verbs, so that the main loop and the actor classes are the same in both. `wait` is called from
`cluster/pending.py` only.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from cluster.placement import Resources
from wmpo_ray.process import held_by_process
from wmpo_ray.timeline import Recording, record

Ref = Any


class ActorLostError(RuntimeError):
    """The process of an actor is gone; what it was doing may or may not have been executed."""


class HungError(ActorLostError):
    """An actor that does not answer, or gets no further; its process is ended."""


class InputLostError(RuntimeError):
    """What a call was given has vanished, with the node that held it; the actor that was called is well."""


class ProcessInfo(NamedTuple):
    pid: int
    node: str


class Work(NamedTuple):
    """What a call took in its worker. `start`: seconds since the epoch."""

    start: float
    seconds: float
    recording: Recording


class Answer(NamedTuple):
    value: Any
    work: Work | None = None  # None: nobody measured it


class Beat(NamedTuple):
    """A sign of life: finished pieces of work, and what the process holds."""

    num_beats: int
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    gpu_utilisation: float = 0.0  # share of the last second or so


def measured(run: Callable[[], Any], num_returns: int) -> tuple[Any, ...]:
    """What a call gives, as many parts as it returns; the first one is an `Answer` and says what the call took."""
    start, began = time.time(), time.perf_counter()
    with record() as recording:
        result = run()
    first, *rest = result if num_returns > 1 else (result,)
    return Answer(first, Work(start, time.perf_counter() - began, recording)), *rest


def unwrapped(arg: Any) -> Any:
    """An argument that was the answer of another call, without what that one took."""
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

    def build(self, actor: Any) -> Ref:
        """Run the constructor; resolves to the seconds it took, raises what it raises."""

    def beat(self, actor: Any) -> Ref:
        """Resolves to a `Beat`, at once even while the actor works."""

    def call(self, actor: Any, method: str, *args: Any, num_returns: int = 1) -> Any:
        """Start a call and return its reference, or a list of `num_returns`; references among `args` are resolved."""

    def wait(self, refs: list[Ref], timeout_s: float | None = None) -> list[Ref]:
        """Block until one of the references is ready or the time is over; all that are ready."""

    def get(self, ref: Ref) -> Any:
        """The value of a ready reference. Raises what the call raised, ActorLostError, InputLostError."""

    def answer(self, ref: Ref) -> Answer:
        """The same for the first reference of a call, with what the call took."""

    def put(self, value: Any) -> Ref: ...

    def kill(self, actor: Any, process: ProcessInfo | None = None) -> None:
        """End an actor's process whatever it is doing, even if it is stopped."""

    def stop(self, actor: Any) -> None: ...

    def draining_nodes(self) -> dict[str, float]:
        """Node -> seconds until it is taken away."""

    def shutdown(self) -> None: ...


@dataclass(eq=False)
class LocalRef:
    """A value that is there already, or will be once the call before it has run."""

    value: Any = None
    error: Exception | None = None
    ready: bool = False


class LocalActor:
    """A plain object, constructed by `build`."""

    def __init__(self, cls: type, args: tuple):
        self.make = lambda: cls(*args)
        self.instance: Any = None


class SerialRuntime:
    """Actors as plain objects; calls run in the order they were made, when somebody waits."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()

    @property
    def available(self) -> dict[str, float]:
        return {"CPU": float("inf"), "GPU": float("inf")}

    @property
    def doors(self) -> dict[str, Any]:
        return {}

    def clock(self) -> float:
        return time.monotonic()

    def spawn(self, cls: type, *args: Any, resources: Resources, name: str) -> Any:
        return LocalActor(cls, args)

    def locate(self, actor: LocalActor) -> Ref:
        return self.put(ProcessInfo(os.getpid(), ""))

    def build(self, actor: LocalActor) -> Ref:
        def construct() -> float:
            started = time.monotonic()
            actor.instance = actor.make()
            return time.monotonic() - started

        return self._later(lambda: (construct(),), 1)[0]

    def beat(self, actor: LocalActor) -> Ref:
        return self.put(beat_of(actor.instance))

    def call(self, actor: LocalActor, method: str, *args: Any, num_returns: int = 1) -> Any:
        def run() -> Any:
            if actor.instance is None:
                actor.instance = actor.make()
            values = [unwrapped(self._read(arg)) if isinstance(arg, LocalRef) else arg for arg in args]
            return getattr(actor.instance, method)(*values)

        refs = self._later(lambda: measured(run, num_returns), num_returns)
        return refs if num_returns > 1 else refs[0]

    def _later(self, run: Callable[[], tuple[Any, ...]], num_returns: int) -> list[LocalRef]:
        refs = [LocalRef() for _ in range(num_returns)]

        def settle() -> None:
            try:
                for ref, value in zip(refs, run(), strict=True):
                    ref.value, ref.ready = value, True
            except Exception as error:  # noqa: BLE001  handed to whoever asks for the value, as Ray does
                for ref in refs:
                    ref.error, ref.ready = error, True

        self._calls.append(settle)
        return refs

    def wait(self, refs: list[LocalRef], timeout_s: float | None = None) -> list[LocalRef]:
        while True:
            if ready := [ref for ref in refs if ref.ready]:
                return ready
            if not self._calls:
                assert timeout_s is not None, "waiting for calls that nobody made"
                time.sleep(timeout_s)
                return []
            self._calls.popleft()()

    def get(self, ref: LocalRef) -> Any:
        return unwrapped(self._read(ref))

    def answer(self, ref: LocalRef) -> Answer:
        value = self._read(ref)
        return value if isinstance(value, Answer) else Answer(value)

    def _read(self, ref: LocalRef) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def put(self, value: Any) -> LocalRef:
        return LocalRef(value, ready=True)

    def kill(self, actor: LocalActor, process: ProcessInfo | None = None) -> None:
        actor.instance = None

    def stop(self, actor: Any) -> None:
        """Nothing to stop: the object goes with its last reference."""

    def draining_nodes(self) -> dict[str, float]:
        return {}

    def shutdown(self) -> None:
        self._calls.clear()


def start_runtime(serial: bool, address: str = "") -> Runtime:
    if serial:
        return SerialRuntime()
    from cluster.ray_runtime import RayRuntime

    return RayRuntime(address)
