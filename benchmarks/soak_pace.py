"""When the next fault comes: after a random pause (`relentless`), or only once the last one is mended (`settled`)."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.soak_cluster import CrashableCluster, num_spares
from benchmarks.soak_faults import ROLES, Fault
from benchmarks.soak_ledger import LOST, REPLACED, LedgerWatch
from cluster.events.event_log import FILE_NAME as EVENTS

MEAN_PAUSE_S, MIN_PAUSE_S, MAX_PAUSE_S = 7.0, 1.0, 20.0
PATIENCE_S = 240.0  # a fault that is not mended after so long is counted, and the next one comes all the same


class Relentless:
    """A pause after every fault, whatever state the run is in."""

    def __init__(self, chance: random.Random):
        self._chance = chance
        self.num_unmended = 0
        self.pause()

    def pause(self) -> None:
        length_s = min(max(self._chance.expovariate(1 / MEAN_PAUSE_S), MIN_PAUSE_S), MAX_PAUSE_S)
        self._next = time.time() + length_s

    def injected(self, fault: Fault) -> None:
        self.pause()

    @property
    def is_due(self) -> bool:
        return time.time() >= self._next


class Settled(Relentless):
    """The pause begins when the last fault is mended; so does the first one, when the run has come up."""

    def __init__(self, chance: random.Random, is_mended: Callable[[Fault], bool]):
        super().__init__(chance)
        self._is_mended = is_mended
        self._fault: Fault | None = Fault(time.time(), "start driver")

    def injected(self, fault: Fault) -> None:
        self._fault = fault

    @property
    def is_due(self) -> bool:
        if self._fault is None:
            return super().is_due
        is_mended = self._is_mended(self._fault)
        if is_mended or time.time() - self._fault.time > PATIENCE_S:
            self.num_unmended += not is_mended
            self._fault = None
            self.pause()
        return False


class Mending:
    """Whether a run stands as it did before a fault: every lost actor serves again, groups come, spares wait."""

    def __init__(self, folder: Path, cluster: CrashableCluster, watch: LedgerWatch, spares: int):
        self._events, self._cluster, self._watch, self._spares = folder / EVENTS, cluster, watch, spares
        self._imagined = (0.0, 0)  # time of the fault that is being mended, groups imagined when it was first asked of

    def __call__(self, fault: Fault) -> bool:
        if self._imagined[0] != fault.time:
            self._imagined = (fault.time, self._watch.num_imagined)
        if fault.kind.endswith("driver") and self._watch.num_imagined == self._imagined[1]:
            return False
        facts = [fact for fact in self._facts() if fact["time"] >= fault.time]
        lost = [fact["worker"] for fact in facts if fact["event"] == LOST]
        last = {fact["worker"]: fact["event"] for fact in facts}
        target = fault.kind.split()[1]
        was_seen = target not in ROLES or any(worker.startswith(f"{target}-") for worker in lost)
        is_there = all(event == REPLACED for event in last.values()) and len(set(lost)) >= len(fault.lost)
        return was_seen and is_there and all(num_spares(node) >= self._spares for node in self._cluster.all_nodes)

    def _facts(self) -> list[dict]:
        lines = self._events.read_text().splitlines() if self._events.exists() else []
        whole = [line for line in lines if line.endswith("}")]
        return [fact for fact in map(json.loads, whole) if fact["event"] in (LOST, REPLACED)]
