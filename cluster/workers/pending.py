"""All calls in progress, and the only place that waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.runtimes.runtime import Ref, Runtime, Work
from cluster.workers.actor_pool import Worker
from wmpo_ray.core.errors import UserError

MakeEvent = Callable[[Any], Any]
OnWork = Callable[[Work], None]
OnFailure = Callable[[Exception], None]


@dataclass(frozen=True)
class Failed:
    """A call that failed; `on_failure` handles it."""

    error: Exception
    on_failure: OnFailure


@dataclass(frozen=True)
class Late:
    """An answer of an actor that has been replaced since; it is dropped."""

    worker: Worker


@dataclass(frozen=True)
class _Call:
    make_event: MakeEvent
    on_failure: OnFailure
    on_work: OnWork
    worker: Worker
    epoch: int


class Pending:
    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self._calls: dict[Ref, _Call] = {}

    def add(
        self,
        ref: Ref,
        worker: Worker,
        make_event: MakeEvent,
        on_failure: OnFailure,
        on_work: OnWork = lambda work: None,
    ) -> None:
        """Watch a call to a worker. `make_event` turns its value into an event; `on_work` receives its timing."""
        self._calls[ref] = _Call(make_event, on_failure, on_work, worker, worker.epoch)

    def wait(self, timeout_s: float) -> list[Ref]:
        """Wait for calls to end; returns the finished ones in the order in which they were made."""
        ready = set(self._runtime.wait(list(self._calls), timeout_s))
        return [ref for ref in self._calls if ref in ready]

    def events(self, refs: list[Ref]) -> Iterator[Any]:
        """The events of finished calls, or `Failed` or `Late`.

        Each is created lazily: handling one event may make the next one late.
        """
        for ref in refs:
            yield self._event(self._calls.pop(ref), ref)

    def _event(self, call: _Call, ref: Ref) -> Any:
        if call.worker.epoch != call.epoch:
            return Late(call.worker)
        try:
            answer = self._runtime.answer(ref)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  the caller decides what it survives
            return Failed(error, call.on_failure)
        if answer.work is not None:
            call.on_work(answer.work)
        return call.make_event(answer.value)
