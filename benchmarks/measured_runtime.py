"""The simulated cluster of the coordinator benchmark: full-size service times, and what is measured beside them."""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.coordinator_scaling import GROUPS_PER_UPDATE, SERVICE_TIMES
from cluster.loop.ledger import Ledger
from cluster.simulation.simulated_runtime import ServiceTime, SimulatedRuntime
from wmpo_ray.core.types import RolloutRequest


def read_service_times(
    groups_per_request: float, learner_gpus: int = 8, speed: float = 1.0, path: Path = SERVICE_TIMES
) -> ServiceTime:
    """Log-normal times around the medians in the file; a request takes as long as its trajectories one after the other.

    That splitting a group costs no throughput is an assumption: imagination is bound by computation from one trajectory
    on.
    """
    content = json.loads(path.read_text())
    medians = {
        method: (entry["seconds"] * groups_per_request, entry["spread"])
        for method, entry in content["per_group"].items()
    }
    medians |= {method: (entry["seconds"], entry["spread"]) for method, entry in content["per_call"].items()}
    seconds, spread = medians["update"]
    medians["update"] = (seconds * LEARNER_GPUS / learner_gpus, spread)

    def service_time(cls: str, method: str, rng: random.Random) -> float:
        seconds, spread = medians["update" if method == "update_part" else method]
        return seconds / speed * math.exp(spread * rng.gauss(0.0, 1.0))

    return service_time


LEARNER_GPUS = 8  # that the file's update is for


@dataclass(eq=False)
class Busy:
    """One rollout of an actor, from `begin` to `end` in virtual seconds."""

    call: Any
    keys: frozenset[tuple[int, int]]
    begin: float
    end: float = math.inf


@dataclass
class Waiting:
    """Which group waited for an actor, wait by wait of the main loop; None: none did."""

    times: list[float] = field(default_factory=list)
    keys: list[tuple[int, int] | None] = field(default_factory=list)

    def note(self, now: float, key: tuple[int, int] | None) -> None:
        if not self.keys or self.keys[-1] != key:
            self.times.append(now)
            self.keys.append(key)

    def seconds(self, busy: Busy, surplus: set[tuple[int, int]]) -> float:
        """How long somebody who was needed waited while this rollout was made."""
        ends = [*self.times[1:], math.inf]
        return sum(
            max(0.0, min(end, busy.end) - max(begin, busy.begin))
            for begin, end, key in zip(self.times, ends, self.keys, strict=True)
            if key is not None and key not in surplus
        )


SLICES = {"update_part": 2, "update": 0}  # the argument that names the groups of a call to the learner


class MeasuredRuntime(SimulatedRuntime):
    """Counts the processor seconds that the simulation itself takes inside its verbs, and what is begun.

    A call to the learner takes as large a share of an update's time as its groups are of the batch.
    """

    own_s = 0.0
    learner_s = 0.0  # virtual seconds of updates

    def __init__(self, *args: Any, **options: Any):
        self.begun: set[tuple[int, int]] = set()
        self.rollouts: list[Busy] = []
        self.waiting = Waiting()
        super().__init__(*args, **options)

    def call(self, actor: Any, method: str, *args: Any, num_returns: int = 1) -> Any:
        if method == "rollout":
            request: RolloutRequest = args[0]
            self.begun.update(group.key for group in request.groups)
        return self._timed(super().call, actor, method, *args, num_returns=num_returns)

    def _start_next(self, actor: Any) -> None:
        before = actor.running
        super()._start_next(actor)
        if actor.running is not before and actor.running is not None and actor.running.method == "rollout":
            keys = frozenset(group.key for group in actor.running.args[0].groups)
            self.rollouts.append(Busy(actor.running, keys, self.clock()))

    def _execute(self, call: Any) -> Any:
        if call.method == "rollout":
            next(one for one in reversed(self.rollouts) if one.call is call).end = self.clock()
        return super()._execute(call)

    def _draw(self, actor: Any, method: str) -> float:
        seconds = super()._draw(actor, method)
        if method in SLICES:
            seconds *= len(actor.running.args[SLICES[method]]) / GROUPS_PER_UPDATE
            self.learner_s += seconds
        return seconds

    def displacing_share(self, surplus: set[tuple[int, int]]) -> float:
        """Of the seconds of all rollouts, those of surplus while a group that was needed waited for an actor."""
        done = [one for one in self.rollouts if one.end < math.inf]
        displacing = sum(self.waiting.seconds(one, surplus) for one in done if one.keys <= surplus)
        return displacing / sum(one.end - one.begin for one in done)

    def beat(self, actor: Any) -> Any:
        return self._timed(super().beat, actor)

    def wait(self, refs: list, timeout_s: float | None = None) -> list:
        return self._timed(super().wait, refs, timeout_s)

    def _timed(self, verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
        started = time.thread_time()
        try:
            return verb(*args, **options)
        finally:
            self.own_s += time.thread_time() - started


class MeasuredLedger(Ledger):
    """Notes the seconds of waiting for the disk, which are no processor time."""

    def __init__(self, path: Path):
        self.waits: list[float] = []
        super().__init__(path)

    @property
    def waited_s(self) -> float:
        """From the median: other processes of the machine must not count as the driver's."""
        return statistics.median(self.waits) * len(self.waits)

    def flush(self) -> None:
        if not self._unwritten:
            return
        started, busy = time.perf_counter(), time.thread_time()
        super().flush()
        self.waits.append(max(0.0, time.perf_counter() - started - (time.thread_time() - busy)))


class Times:
    """A run log that only notes when updates were done."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.updates: list[float] = []

    def metrics(self, update: int, values: dict[str, float]) -> None:
        self.updates.append(self.clock())

    def restore(self, history: list[dict]) -> set[int]:
        return set()
