"""What the files of a run say of its groups and of its recoveries, read from outside while it runs; a round of a soak as a file."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.soak_faults import SETTLE_S, Fault
from cluster.events.event_log import FILE_NAME as EVENTS
from cluster.loop.ledger import FILE_NAME, RESTORED, Account, Key, Ledger, State
from cluster.recipes.optimize import rollout_folders
from wmpo_ray.core.files import atomic_write

LOST, REPLACED = "worker.lost", "worker.replaced"


class LedgerWatch:
    """Follows a ledger by its raw lines, without the checks of whoever writes it."""

    def __init__(self, folder: Path):
        self.path = folder / FILE_NAME
        self.spool, _ = rollout_folders(folder)
        self.num_trained_twice = 0
        self.num_imagined = 0  # groups, those imagined again included
        self.num_imagined_again = 0  # groups, after they had been admitted
        self._trained: dict[Key, int] = {}  # -> version, in the lineage that survives
        self._files: dict[Key, str] = {}
        self._admitted: dict[Path, tuple[int, set[Key]]] = {}  # spooled file -> time of its writing, admitted groups
        self._read = 0

    @property
    def trained(self) -> set[Key]:
        return set(self._trained)

    def read(self) -> None:
        """Take in what has been written since, and look whether files of admitted groups were written again."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                file.seek(self._read)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for raw in whole.splitlines():
                self._follow(json.loads(raw.rpartition(b"\t")[0]))
        for path, (written, keys) in list(self._admitted.items()):
            if (now := _written(path)) is None:
                del self._admitted[path]  # its update is trained
            elif now != written:
                self.num_imagined_again += len(keys)
                self._admitted[path] = (now, keys)

    def _follow(self, line: dict) -> None:
        if line["event"] == RESTORED:
            self._trained = {key: v for key, v in self._trained.items() if key[0] < line["version"]}
            return
        update, attempt = line["group"]
        key = (update, attempt)
        match line["event"]:
            case State.IMAGINED:
                self.num_imagined += 1
            case State.SCORED:
                self._files[key] = [name for name, *_ in line["files"]]
            case State.ADMITTED:
                for name in self._files[key]:
                    path = self.spool / f"update-{update:06d}" / name
                    if (written := _written(path)) is not None:
                        self._admitted.setdefault(path, (written, set()))[1].add(key)
            case State.TRAINED:
                self.num_trained_twice += key in self._trained
                self._trained[key] = line["version"]

    def account(self) -> Account:
        return self._ledger().account()

    def verdicts(self) -> dict[str, int]:
        return dict(self._ledger().verdicts())

    def _ledger(self) -> Ledger:
        with tempfile.TemporaryDirectory() as folder:  # opening a ledger is for its writer
            ledger = Ledger(Path(shutil.copy(self.path, folder)))
            ledger.close()
            return ledger


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@dataclass
class Recoveries:
    actors: list[tuple[float, float]] = field(default_factory=list)  # (seconds, those of them for loading)
    nodes: list[float] = field(default_factory=list)  # seconds


def recoveries(folder: Path, faults: Sequence[Fault]) -> Recoveries:
    """How long replacements took, by the log of faults; what the end of a driver cut short is left out."""
    path = folder / EVENTS
    lines = path.read_text().splitlines() if path.exists() else []
    facts = [fact for fact in map(json.loads, lines) if fact["event"] in (LOST, REPLACED)]
    found = Recoveries()
    with_nodes: set[int] = set()  # places in the log
    ends = [fault.time for fault in faults if fault.kind.endswith("driver")]
    for fault in faults:
        if not fault.lost:
            continue
        window = (fault.time, fault.time + SETTLE_S)
        pairs = [(lost, _replaced(facts, lost)) for lost in _lost_in(facts, *window)]
        with_nodes |= {after for _, after in pairs if after is not None}
        times = [facts[after]["time"] for _, after in pairs if after is not None]
        cut_short = any(fault.time < end < max(times, default=fault.time) for end in ends)
        if len(times) >= len(fault.lost) and not cut_short:
            found.nodes.append(max(times) - fault.time)
    lost_at: dict[str, float] = {}  # the last time: another fault may have hit the replacement
    for place, fact in enumerate(facts):
        if fact["event"] == LOST:
            lost_at[fact["worker"]] = fact["time"]
        elif place not in with_nodes:
            found.actors.append((fact["time"] - lost_at[fact["worker"]], fact["build_s"]))
    return found


def _lost_in(facts: Sequence[dict], start: float, end: float) -> list[int]:
    """Places in the log of the first losses in a time, one for each worker."""
    first: dict[str, int] = {}
    for place, fact in enumerate(facts):
        if fact["event"] == LOST and start <= fact["time"] <= end:
            first.setdefault(fact["worker"], place)
    return list(first.values())


def _replaced(facts: Sequence[dict], lost: int) -> int | None:
    """Place in the log of the end of a loss."""
    worker = facts[lost]["worker"]
    after = (place for place in range(lost + 1, len(facts)) if facts[place]["worker"] == worker)
    return next((place for place in after if facts[place]["event"] == REPLACED), None)


@dataclass
class Round:
    """What happened in one run from the gate to the end of the stage."""

    started: float  # clock on the wall
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0
    digest: str = ""
    lost: int = 0
    trained_twice: int = 0
    imagined_again: int = 0
    drivers: int = 0
    driver_crashes: list[tuple[int, str]] = field(default_factory=list)
    unmended: int = 0
    account: dict[str, Any] = field(default_factory=dict)
    recoveries: Recoveries = field(default_factory=Recoveries)
    progress: list[tuple[float, int]] = field(default_factory=list)  # (seconds, groups trained)

    def write(self, path: Path) -> None:
        atomic_write(path, json.dumps({**vars(self), "recoveries": vars(self.recoveries)}, indent=1))


def read_round(path: Path) -> Round:
    """What `Round.write` has written."""
    facts = json.loads(path.read_text())
    faults = [Fault(*fault) for fault in facts.pop("faults")]
    known = {each.name for each in fields(Round)}
    plain = {key: value for key, value in facts.items() if key in known and key != "recoveries"}
    return Round(**plain, faults=faults, recoveries=Recoveries(**facts["recoveries"]))
