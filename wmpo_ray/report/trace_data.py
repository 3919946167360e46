"""The calls of one update and what happened inside them, read without trust from `traces/update-000003.jsonl`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from wmpo_ray.config.roles import ROLES
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import parse_json
from wmpo_ray.report.run_data import number

FOLDER = "traces"
OTHER = "other"  # time inside a call that no phase accounts for
MAX_BYTES = 64 << 20
MAX_SPANS = 100_000  # of one call
MAX_TEXT = 80
JITTER_S = 1e-3  # calls of one worker that overlap by less do so only because two clocks measured them
LONGEST_S = 30 * 86400.0  # what is longer is no call
_FILE = re.compile(r"update-(\d{1,12})\.jsonl")


class Phase(NamedTuple):
    """A named stretch of time inside a call; `start` in seconds since the epoch."""

    name: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Call:
    """One call of a worker."""

    worker: str
    role: str
    node: str
    pid: int
    name: str  # "imagine", "score", "update", "load_weights", ...
    update: int | None
    groups: tuple[tuple[int, int], ...]
    version: int | None
    start: float  # seconds since the epoch
    end: float
    phases: tuple[
        Phase, ...
    ] = ()  # inside the call, each either inside or outside of every other one, outer ones first

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Trace:
    """All calls that were made for one update, by their starts."""

    update: int
    calls: tuple[Call, ...]
    num_damaged: int = 0  # lines that were left out

    @cached_property
    def start(self) -> float:
        return min(call.start for call in self.calls)

    @cached_property
    def end(self) -> float:
        return max(call.end for call in self.calls)

    @property
    def is_complete(self) -> bool:
        """Whether the learner trained this update: everything before it is then there as well."""
        return any(call.name == "update" for call in self.calls)


def trace_files(run_folder: Path) -> dict[int, Path]:
    """The files of traces by their update, in order."""
    folder = run_folder / FOLDER
    found = [(match, path) for path in folder.glob("update-*.jsonl") if (match := _FILE.fullmatch(path.name))]
    return dict(sorted((int(match[1]), path) for match, path in found if path.is_file()))


def newest_trace(run_folder: Path) -> Trace | None:
    """The newest complete update; the newest unfinished one where none is complete, None where nothing can be read."""
    unfinished: Trace | None = None
    for path in reversed(trace_files(run_folder).values()):
        trace = read_trace(path)
        if trace.is_complete:
            return trace
        if unfinished is None and trace.calls:
            unfinished = trace
    return unfinished


def read_trace(path: Path) -> Trace:
    """The calls in a file; damaged lines are counted, and nothing is read of a file beyond MAX_BYTES."""
    match = _FILE.fullmatch(path.name)
    try:
        with open(path, "rb") as file:
            lines = file.read(MAX_BYTES).splitlines()
    except FileNotFoundError:  # the run keeps the newest few, and has gone on meanwhile
        lines = []
    calls = [_parse(line) for line in lines if line.strip()]
    whole = sorted((call for call in calls if call is not None), key=lambda call: (call.start, call.worker))
    return Trace(int(match[1]) if match else 0, tuple(_without_jitter(whole)), len(calls) - len(whole))


def _without_jitter(calls: list[Call]) -> list[Call]:
    """Calls by their starts, none of which ends just behind the start of its worker's next one."""
    following: dict[str, float] = {}
    cut: list[Call] = []
    for call in reversed(calls):
        begins = following.get(call.worker, call.end)
        if begins < call.end <= begins + JITTER_S and begins >= call.start:
            call = replace(call, end=begins, phases=tuple(nest(call.phases, call.start, begins)))
        following[call.worker] = call.start
        cut.append(call)
    return cut[::-1]


def _parse(line: bytes) -> Call | None:
    try:
        data = parse_json(line, "a line")
    except UserError:
        return None
    start, seconds = number(data, "start"), number(data, "seconds")
    if start is None or seconds is None or start < 0 or not 0 <= seconds <= LONGEST_S:
        return None
    worker, role, node, name = (_text(data.get(key)) for key in ("worker", "role", "node", "call"))
    if not worker or not name:
        return None
    call = Call(
        worker=worker,
        role=role or "other",
        node=node,
        pid=_whole(data, "pid") or 0,
        name=name,
        update=_whole(data, "update"),
        groups=_groups(data.get("groups")),
        version=_whole(data, "version"),
        start=start,
        end=start + seconds,
    )
    return replace(call, phases=tuple(nest(_spans(data.get("spans")), call.start, call.end)))


def _text(value: Any) -> str:
    return "".join(filter(str.isprintable, value[:MAX_TEXT])) if isinstance(value, str) else ""


def _whole(data: Any, key: str) -> int | None:
    value = number(data, key)
    return None if value is None else int(value)


def _groups(value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list):
        return ()
    pairs = [entry for entry in value if isinstance(entry, list) and len(entry) == 2]
    return tuple((a, b) for a, b in pairs if type(a) is int and type(b) is int)


def _spans(value: Any) -> Iterator[Phase]:
    for entry in value[:MAX_SPANS] if isinstance(value, list) else []:
        if not isinstance(entry, list) or len(entry) != 3 or not _text(entry[0]):
            continue
        start, seconds = (number({"value": part}, "value") for part in entry[1:])
        if start is not None and seconds is not None and seconds >= 0:
            yield Phase(_text(entry[0]), start, start + seconds)


def nest(spans: Iterable[Phase], low: float, high: float) -> list[Phase]:
    """Spans cut to [low, high], and each inside or outside of every other one, outer ones first.

    A start and a duration come from two clocks, so that a span may seem to reach a little into the next one: it then
    ends where that begins.
    """
    done: list[Phase] = []
    open_: list[int] = []  # indices into `done`, outer ones first
    for name, start, end in sorted(spans, key=lambda span: (span.start, -span.end)):
        start, end = max(start, low), min(end, high)
        if end <= start:
            continue
        while open_ and done[open_[-1]].end < end:
            last = open_.pop()
            done[last] = done[last]._replace(end=min(done[last].end, start))
        open_.append(len(done))
        done.append(Phase(name, start, end))
    return [phase for phase in done if phase.end > phase.start]


def exclusive(call: Call) -> list[Phase]:
    """The call from its start to its end, at each moment the innermost phase, OTHER where there is none.

    A call without phases is one of its own name; so is what an environment does, whose phases are only what comes first.
    """
    segments: list[Phase] = []
    now = call.start
    whole = call.name if call.role == "environment" or not call.phases else OTHER
    open_ = [Phase(whole, call.start, call.end)]

    def advance(until: float) -> None:
        nonlocal now
        if until > now:
            segments.append(Phase(open_[-1].name, now, until))
            now = until

    for phase in call.phases:
        while open_[-1].end <= phase.start and len(open_) > 1:
            advance(open_[-1].end)
            open_.pop()
        advance(phase.start)
        open_.append(phase)
    while open_:
        advance(open_[-1].end)
        open_.pop()
    return segments


def worker_key(call: Call) -> tuple[int, str, int, str]:
    """Roles in the order of the work, workers by their number."""
    tail = call.worker.rpartition("-")[2]
    place = list(ROLES).index(call.role) if call.role in ROLES else len(ROLES)
    return (place, call.role, int(tail) if tail.isdecimal() and len(tail) < 10 else -1, call.worker)


def by_worker(trace: Trace) -> dict[str, list[Call]]:
    """The calls of each worker by their starts, workers in the order of their rows."""
    rows: dict[str, list[Call]] = {}
    for call in sorted(trace.calls, key=lambda call: (worker_key(call), call.start)):
        rows.setdefault(call.worker, []).append(call)
    return rows


def busy_shares(trace: Trace) -> dict[str, float]:
    """For each worker the share of the trace's time in which it worked."""
    whole = trace.end - trace.start
    shares = {}
    for worker, calls in by_worker(trace).items():
        busy, until = 0.0, trace.start
        for call in calls:
            busy += max(0.0, call.end - max(call.start, until))
            until = max(until, call.end)
        shares[worker] = busy / whole if whole else 0.0
    return shares


def phase_seconds(trace: Trace) -> dict[str, dict[str, float]]:
    """Role -> phase -> seconds of all its workers together, the longest phase first."""
    sums: dict[str, dict[str, float]] = {}
    for call in sorted(trace.calls, key=worker_key):
        role = sums.setdefault(call.role, {})
        for phase in exclusive(call):
            role[phase.name] = role.get(phase.name, 0.0) + phase.seconds
    return {role: dict(sorted(found.items(), key=lambda item: -item[1])) for role, found in sums.items()}
