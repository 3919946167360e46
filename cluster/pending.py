"""Everything that is under way, and the one place that waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.runtime import ActorLostError, Ref, Runtime

MakeEvent = Callable[[Any], Any]


@dataclass(frozen=True)
class Failed:
    """A call whose actor died; `on_loss` says what to do about it."""

    error: ActorLostError
    on_loss: Callable[[Exception], None]


class Pending:
    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self._calls: dict[Ref, tuple[MakeEvent, Callable[[Exception], None]]] = {}

    def add(self, ref: Ref, make_event: MakeEvent, on_loss: Callable[[Exception], None]) -> None:
        """Watch a call. `make_event` turns its value into an event; `on_loss` is for when its actor died."""
        self._calls[ref] = (make_event, on_loss)

    def __len__(self) -> int:
        return len(self._calls)

    def next(self) -> Any:
        """Wait for the next call to end and return its event, or `Failed`. What the call raised is raised here."""
        ref = self._runtime.wait(list(self._calls))
        make_event, on_loss = self._calls.pop(ref)
        try:
            value = self._runtime.get(ref)
        except ActorLostError as error:
            return Failed(error, on_loss)
        return make_event(value)
