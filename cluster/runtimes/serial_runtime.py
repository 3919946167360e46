"""Actors as plain objects in this process."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import Answer, ProcessInfo, Ref, beat_of, measured, unwrapped


@dataclass(eq=False)
class LocalRef:
    """A value that exists already, or will once its call has run."""

    value: Any = None
    error: Exception | None = None
    ready: bool = False


class LocalActor:
    """A plain object, constructed by `build`."""

    def __init__(self, cls: type, args: tuple):
        self.make = lambda: cls(*args)
        self.instance: Any = None


class SerialRuntime:
    """Actors as plain objects; calls run in the order they were made, inside `wait`."""

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

    def has_place(self, actor: LocalActor) -> bool:
        return True

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

    def tell(self, actor: LocalActor, method: str, *args: Any) -> None:
        if actor.instance is not None:
            getattr(actor.instance, method)(*args)

    def beside(self, actor: LocalActor, method: str, *args: Any) -> Ref:
        ref = self.call(actor, method, *args)
        self._calls.pop()()  # at once: there is no other thread
        return ref

    def _later(self, run: Callable[[], tuple[Any, ...]], num_returns: int) -> list[LocalRef]:
        refs = [LocalRef() for _ in range(num_returns)]

        def settle() -> None:
            try:
                for ref, value in zip(refs, run(), strict=True):
                    ref.value, ref.ready = value, True
            except Exception as error:  # noqa: BLE001  raised when the value is read, as Ray does
                for ref in refs:
                    ref.error, ref.ready = error, True

        self._calls.append(settle)
        return refs

    def wait(self, refs: list[LocalRef], timeout_s: float | None = None) -> list[LocalRef]:
        while True:
            if ready := [ref for ref in refs if ref.ready]:
                return ready
            if not self._calls:
                assert timeout_s is not None, "waiting for calls that were never made"
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
