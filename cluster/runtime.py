"""Where actors run: on Ray, or one after the other in this process.

Both give the same few verbs, so that the main loop and the actor classes are the same in both. `wait` is called from
`cluster/pending.py` only.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from cluster.placement import Resources

Ref = Any


class ActorLostError(RuntimeError):
    """The process of an actor is gone; what it was doing may or may not have been executed."""


class Runtime(Protocol):
    @property
    def available(self) -> dict[str, float]:
        """What there is: {"CPU": ..., "GPU": ...}."""

    def spawn(self, cls: type, *args: Any, resources: Resources, name: str) -> Any:
        """Place an actor; its constructor runs later, and its failure shows in the first call."""

    def call(self, actor: Any, method: str, *args: Any, num_returns: int = 1) -> Any:
        """Start a call and return its reference, or a list of `num_returns`; references among `args` are resolved."""

    def wait(self, refs: list[Ref]) -> Ref:
        """Block until one of the references is ready."""

    def get(self, ref: Ref) -> Any:
        """The value of a ready reference. Raises what the call raised, ActorLostError if its process died."""

    def put(self, value: Any) -> Ref: ...

    def stop(self, actor: Any) -> None: ...

    def shutdown(self) -> None: ...


class RayRuntime:
    """Actors as Ray actors, on a running cluster or on one started here and stopped at the end."""

    def __init__(self, address: str = ""):
        self._started_here = not ray.is_initialized()
        if self._started_here:
            local = {"include_dashboard": False} if not address else {}
            ray.init(address=address or "local", logging_level=logging.WARNING, log_to_driver=False, **local)

    @property
    def available(self) -> dict[str, float]:
        return ray.cluster_resources()

    def spawn(self, cls: type, *args: Any, resources: Resources, name: str) -> Any:
        # Restarts are ours: an actor that fails in its constructor under Ray's own restarts is silent for ever.
        options = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus, "max_restarts": 0}
        return ray.remote(cls).options(**options).remote(*args)

    def call(self, actor: Any, method: str, *args: Any, num_returns: int = 1) -> Any:
        return getattr(actor, method).options(num_returns=num_returns).remote(*args)

    def wait(self, refs: list[Ref]) -> Ref:
        ready, _ = ray.wait(refs, num_returns=1, fetch_local=False)
        return ready[0]

    def get(self, ref: Ref) -> Any:
        try:
            return ray.get(ref)
        except RayActorError as error:
            raise ActorLostError(str(error)) from error
        except RayTaskError as error:
            # The cause is what the code raised; Ray's wrapper adds its own frames to the message.
            raise error.cause from error

    def put(self, value: Any) -> Ref:
        return ray.put(value)

    def stop(self, actor: Any) -> None:
        ray.kill(actor)

    def shutdown(self) -> None:
        if self._started_here:
            ray.shutdown()


@dataclass(eq=False)
class LocalRef:
    """A value that is there already, or will be once the call before it has run."""

    value: Any = None
    error: Exception | None = None
    ready: bool = False


class SerialRuntime:
    """Actors as plain objects; calls run in the order they were made, when somebody waits."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()

    @property
    def available(self) -> dict[str, float]:
        return {"CPU": float("inf"), "GPU": float("inf")}

    def spawn(self, cls: type, *args: Any, resources: Resources, name: str) -> Any:
        return cls(*args)

    def call(self, actor: Any, method: str, *args: Any, num_returns: int = 1) -> Any:
        refs = [LocalRef() for _ in range(num_returns)]

        def run() -> None:
            try:
                values = [arg.value if isinstance(arg, LocalRef) else arg for arg in args]
                result = getattr(actor, method)(*values)
                results = result if num_returns > 1 else [result]
                for ref, value in zip(refs, results, strict=True):
                    ref.value, ref.ready = value, True
            except Exception as error:  # noqa: BLE001  handed to whoever asks for the value, as Ray does
                for ref in refs:
                    ref.error, ref.ready = error, True

        self._calls.append(run)
        return refs if num_returns > 1 else refs[0]

    def wait(self, refs: list[Ref]) -> Ref:
        while True:
            for ref in refs:
                if ref.ready:
                    return ref
            self._calls.popleft()()

    def get(self, ref: LocalRef) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def put(self, value: Any) -> LocalRef:
        return LocalRef(value, ready=True)

    def stop(self, actor: Any) -> None:
        """Nothing to stop: the object goes with its last reference."""

    def shutdown(self) -> None:
        self._calls.clear()


def start_runtime(serial: bool, address: str = "") -> RayRuntime | SerialRuntime:
    return SerialRuntime() if serial else RayRuntime(address)
