"""Records the state of every group: issued, judged, and trained by which update. Each group is trained at most once.

    ISSUED -> IMAGINED -> SCORED -> ADMITTED | REJECTED(verdict) -> TRAINED(update)

IMAGINED: some of its members are; SCORED: all of them. Where several requests roll out its members, a line `part` each
says what is scored already, so that a restart goes on from there.

`ledger.jsonl` is append-only: one JSON line with a checksum per state change, flushed to disk before anything relies on
it. After a crash the ledger is replayed; `restored` withdraws the groups of updates that the learner's checkpoint does
not contain. At all times

    issued = in flight + waiting + rejected + trained.
"""

from __future__ import annotations

import enum
import json
import logging
import os
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from cluster.events.event_log import LOGGER, emit
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import explain_full_disk, write_all
from wmpo_ray.core.untrusted import parse_json, read_lines

FILE_NAME = "ledger.jsonl"
MAX_BYTES = 2**34  # it is read line by line
Key = tuple[int, int]  # update, attempt


class State(enum.StrEnum):
    ISSUED = "issued"
    IMAGINED = "imagined"
    SCORED = "scored"
    ADMITTED = "admitted"
    REJECTED = "rejected"
    TRAINED = "trained"


RESTORED, LATE = "restored", "late"  # lines that do not belong to a group
PART = "part"  # some members of a group are scored; its state stays
# A group can be rejected from any state before training: surplus groups in any state, quarantined ones before scoring.
_BEFORE = {
    State.ISSUED: (None,),
    State.IMAGINED: (State.ISSUED,),
    State.SCORED: (State.IMAGINED,),
    State.ADMITTED: (State.SCORED,),
    State.REJECTED: (State.ISSUED, State.IMAGINED, State.SCORED, State.ADMITTED),
    State.TRAINED: (State.ADMITTED,),
}


class LedgerError(RuntimeError):
    """An invalid state change: a group trained twice, or never issued."""


class Account(NamedTuple):
    issued: int
    in_flight: int
    waiting: int
    rejected: int
    trained: int
    withdrawn: int  # withdrawn because the learner resumed from an older checkpoint, or the driver restarted
    late: int  # dropped answers: from replaced actors, or duplicates

    @property
    def balances(self) -> bool:
        return self.issued == self.in_flight + self.waiting + self.rejected + self.trained


@dataclass
class Record:
    """State of one group; `facts` collects the facts of all its state changes."""

    state: State
    facts: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """One writer at a time. With `path` None the ledger is kept in memory only."""

    def __init__(self, path: Path | None):
        self.path = path
        self.epoch = 0
        self.records: dict[Key, Record] = {}
        self.num_withdrawn = 0
        self.num_late = 0
        self._counts: Counter[State] = Counter()
        self._number = 0
        self._unwritten: list[bytes] = []
        self._file: int | None = None
        if path is not None:
            size = self._replay(path) if path.exists() else 0
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.ftruncate(self._file, size)  # a line that a kill cut short
            os.lseek(self._file, size, os.SEEK_SET)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a ledger file that another process may be writing."""
        ledger = cls(None)
        ledger._replay(path)
        return ledger

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, state: State, key: Key, **facts: Any) -> None:
        """Record a state change of a group. Raises LedgerError if the group's current state does not allow it."""
        self._apply(state, key, facts)
        self._write({"event": state.value, "group": list(key), **facts})
        if LOGGER.isEnabledFor(logging.DEBUG):
            text = f"group {key[0]}/{key[1]} {state.value}"
            emit(f"group.{state.value}", text, logging.DEBUG, **{"group": list(key), **facts})

    def part(self, key: Key, **facts: Any) -> None:
        """Record scored members of a group that other requests complete. Raises LedgerError for one that is settled."""
        self._take_part(key, facts)
        self._write({"event": PART, "group": list(key), **facts})

    def restored(self, version: int) -> dict[Key, Record]:
        """The learner is at `version`: start a new epoch and withdraw all groups of later updates.

        Returns their records, so that groups whose rollouts still exist can be entered again.
        """
        self.epoch += 1
        withdrawn = self._withdraw(version)
        self._write({"event": RESTORED, "version": version})
        return withdrawn

    def late(self) -> None:
        """Count a dropped answer: its actor was replaced, or another actor answered first."""
        self.num_late += 1
        self._write({"event": LATE})

    def flush(self) -> None:
        """Write everything appended so far to disk. Raises `UserError` if the disk is full."""
        if self._file is None or self.path is None or not self._unwritten:
            self._unwritten.clear()
            return
        with explain_full_disk(self.path):
            write_all(self._file, b"".join(self._unwritten))
        self._unwritten.clear()

    def close(self) -> None:
        if self._file is not None:
            self.flush()
            os.close(self._file)
            self._file = None

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Number of the last line; checkpoints record it."""
        return self._number

    def state(self, key: Key) -> State | None:
        record = self.records.get(key)
        return record.state if record else None

    def account(self) -> Account:
        count = self._counts
        in_flight = count[State.ISSUED] + count[State.IMAGINED] + count[State.SCORED]
        return Account(
            len(self.records),
            in_flight,
            count[State.ADMITTED],
            count[State.REJECTED],
            count[State.TRAINED],
            self.num_withdrawn,
            self.num_late,
        )

    def verdicts(self) -> Counter[str]:
        """Rejected groups by verdict."""
        rejected = (r for r in self.records.values() if r.state is State.REJECTED)
        return Counter(record.facts["verdict"] for record in rejected)

    # -- state changes --------------------------------------------------------------------------------------------

    def _apply(self, state: State, key: Key, facts: dict[str, Any]) -> None:
        record = self.records.get(key)
        before = record.state if record else None
        if before not in _BEFORE[state]:
            raise LedgerError(f"group {key} cannot become {state.value}: it is {before.value if before else 'unknown'}")
        if record is None:
            self.records[key] = Record(state, dict(facts))
        else:
            self._counts[record.state] -= 1
            record.state = state
            record.facts |= facts
        self._counts[state] += 1

    def _take_part(self, key: Key, facts: dict[str, Any]) -> None:
        if (state := self.state(key)) not in (State.ISSUED, State.IMAGINED):
            raise LedgerError(f"members of group {key} cannot be scored: it is {state.value if state else 'unknown'}")
        self.records[key].facts.setdefault("parts", []).append(facts)

    def _withdraw(self, version: int) -> dict[Key, Record]:
        withdrawn = {key: record for key, record in self.records.items() if key[0] >= version}
        for key, record in withdrawn.items():
            self._counts[record.state] -= 1
            del self.records[key]
        self.num_withdrawn += len(withdrawn)
        return withdrawn

    # -- lines ---------------------------------------------------------------------------------------------------

    def _write(self, line: dict[str, Any]) -> None:
        self._number += 1
        text = json.dumps({"n": self._number, "epoch": self.epoch, **line}, separators=(",", ":"))
        self._unwritten.append(f"{text}\t{zlib.crc32(text.encode()):08x}\n".encode())

    def _replay(self, path: Path) -> int:
        """Replay the file; returns the length of its valid part in bytes.

        Raises `UserError` for a damaged line followed by valid lines: that is not a torn write.
        """
        size = 0
        damaged = 0
        for number, raw in enumerate(read_lines(path, MAX_BYTES), 1):
            line = _parse(raw, f"{path}, line {number}")
            if line is None:
                damaged = damaged or number
                continue
            if damaged:
                raise UserError(
                    f"{path}, line {damaged}: damaged, although later lines are intact; delete the file to resume from "
                    "the last checkpoint (groups imagined since then will be imagined again)"
                )
            size += len(raw)
            try:
                self._apply_line(line)
            except (KeyError, TypeError, ValueError, LedgerError) as error:
                raise UserError(f"{path}, line {number}: not a ledger line ({error!r}); delete the file") from None
        return size

    def _apply_line(self, line: dict[str, Any]) -> None:
        self._number = int(line["n"])
        self.epoch = int(line["epoch"])
        if line["event"] == RESTORED:
            self._withdraw(int(line["version"]))
        elif line["event"] == LATE:
            self.num_late += 1
        else:
            facts = {k: v for k, v in line.items() if k not in ("n", "epoch", "event", "group")}
            update, attempt = line["group"]
            key = (int(update), int(attempt))
            if line["event"] == PART:
                self._take_part(key, facts)
            else:
                self._apply(State(line["event"]), key, facts)


def _parse(raw: bytes, where: str) -> dict[str, Any] | None:
    text, _, checksum = raw.rpartition(b"\t")
    if not raw.endswith(b"\n") or checksum.strip() != f"{zlib.crc32(text):08x}".encode():
        return None
    line = parse_json(text, where)
    if not isinstance(line, dict):
        raise UserError(f"{where}: not a ledger line; delete the file")
    return line
