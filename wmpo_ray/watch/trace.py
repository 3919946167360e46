"""One update as a file for ui.perfetto.dev and chrome://tracing.

The format is Chrome's trace events, as a JSON object: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
(a node is a process, a worker a thread, a call and what happened inside it complete events, and an arrow leads from what
was imagined to its score).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write
from wmpo_ray.report.formats import percent, seconds
from wmpo_ray.report.trace_data import (
    FOLDER,
    Call,
    Trace,
    busy_shares,
    by_worker,
    newest_trace,
    phase_seconds,
    read_trace,
    trace_files,
)

MAX_WORKERS_SHOWN = 24


def find_trace(run_folder: Path, update: int | None = None) -> Trace:
    """The calls of an update, of the newest complete one where none is named.

    Raises UserError where there is no such trace, or nothing in it can be read.
    """
    if not run_folder.is_dir():
        raise UserError(f"{run_folder}: no such folder; give the folder of a run")
    files = trace_files(run_folder)
    if not files:
        raise UserError(f"{run_folder} holds no {FOLDER}/update-*.jsonl: no work for an update has been done in it yet")
    if update is not None and update not in files:
        raise UserError(
            f"--update {update}: {run_folder} keeps the traces of {', '.join(map(str, files))}; older ones are deleted"
        )
    trace = newest_trace(run_folder) if update is None else read_trace(files[update])
    if trace is None or not trace.calls:
        what = files[update].name if update is not None else "every file"
        raise UserError(f"{run_folder / FOLDER}: nothing can be read from {what}; wait for the first call to end")
    return trace


def write_chrome_trace(trace: Trace, path: Path) -> None:
    """Write what `chrome_trace` makes; raises UserError on a full disk or a folder that is not there."""
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: the folder {path.parent} does not exist")
    atomic_write(path, json.dumps(chrome_trace(trace), separators=(",", ":"), allow_nan=False))


def chrome_trace(trace: Trace) -> dict[str, Any]:
    """The JSON object of the trace-event format; times in whole microseconds since the first call."""
    events: list[dict[str, Any]] = []
    places: dict[int, tuple[int, int]] = {}  # id of a call -> (process, thread)
    nodes = sorted({call.node for call in trace.calls})
    for pid, node in enumerate(nodes, 1):
        events.append(_name("process_name", pid, 0, f"node {node[:12]}" if node else "this machine"))
    threads: dict[int, int] = {}
    for call_rows in by_worker(trace).values():
        for lane, calls in enumerate(_lanes(call_rows)):
            for pid in sorted({nodes.index(call.node) + 1 for call in calls}):
                thread = threads[pid] = threads.get(pid, 0) + 1
                label = calls[0].worker + (f" ({lane + 1})" if lane else "")
                events += [_name("thread_name", pid, thread, label), _sort_index(pid, thread)]
                places.update({id(call): (pid, thread) for call in calls if nodes.index(call.node) + 1 == pid})
    timed = [event for call in trace.calls for event in _complete(call, trace.start, *places[id(call)])]
    timed += _flows(trace, places)
    order = sorted(timed, key=lambda event: (event["ts"], -event.get("dur", 0)))
    about = {"update": trace.update, "start": trace.start, "complete": trace.is_complete}
    return {"traceEvents": events + order, "displayTimeUnit": "ms", "otherData": about}


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _sort_index(pid: int, tid: int) -> dict[str, Any]:
    return {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _lanes(calls: Sequence[Call]) -> list[list[Call]]:
    """Calls of one worker in as few rows as keep them apart: a thread's events may only be nested."""
    lanes: list[list[Call]] = []
    for call in calls:
        free = next((lane for lane in lanes if lane[-1].end <= call.start), None)
        if free is None:
            lanes.append([call])
        else:
            free.append(call)
    return lanes


def _microseconds(moment: float, origin: float) -> int:
    return round((moment - origin) * 1e6)


def _complete(call: Call, origin: float, pid: int, tid: int) -> Iterator[dict[str, Any]]:
    """The call and its phases. Both ends are rounded, never a duration, so that what is inside stays inside."""
    place = {"ph": "X", "pid": pid, "tid": tid}
    args = {"update": call.update, "version": call.version, "groups": [list(group) for group in call.groups]}
    begin, end = _microseconds(call.start, origin), _microseconds(call.end, origin)
    yield {**place, "name": call.name, "cat": call.role, "ts": begin, "dur": end - begin, "args": args}
    for phase in call.phases:
        begin, end = _microseconds(phase.start, origin), _microseconds(phase.end, origin)
        yield {**place, "name": phase.name, "cat": call.role, "ts": begin, "dur": end - begin, "args": {}}


def _flows(trace: Trace, places: dict[int, tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """An arrow from each imagined request to each of its scores."""
    imagined: dict[tuple[int, int], list[Call]] = {}
    for call in trace.calls:
        for group in call.groups if call.name == "imagine" else ():
            imagined.setdefault(group, []).append(call)
    number = 0
    for score in (call for call in trace.calls if call.name == "score"):
        # Not by its end: the clocks of two nodes differ.
        before = [one for group in score.groups for one in imagined.get(group, ()) if one.start <= score.start]
        for source in {id(one): one for one in before}.values():
            number += 1
            leaves = max(source.start, min(source.end - 1e-6, score.start))
            ends = ((source, "s", leaves), (score, "f", score.start))
            for call, phase, moment in ends:
                pid, tid = places[id(call)]
                about = {"ph": phase, "id": number, "name": "video", "cat": "flow", "pid": pid, "tid": tid}
                yield {**about, "ts": _microseconds(moment, trace.start), **({"bp": "e"} if phase == "f" else {})}


# -- tables ------------------------------------------------------------------------------------------------------


def trace_tables(trace: Trace) -> RenderableType:
    """Where the time of each role goes, and how busy each worker was."""
    phases = Table("role", "phase", "seconds", "share", title="Where the time goes", title_justify="left")
    for column in phases.columns[2:]:
        column.justify = "right"
    for role, found in phase_seconds(trace).items():
        whole = sum(found.values())
        for i, (name, spent) in enumerate(found.items()):
            share = percent(spent / whole) if whole else "–"
            phases.add_row(Text("" if i else role), Text(name), f"{spent:.2f}", share)
        phases.add_section()
    return Group(phases, _busy_table(trace))


def _busy_table(trace: Trace) -> Table:
    table = Table("worker", "calls", "busy", "", title="How busy the workers were", title_justify="left")
    table.columns[1].justify = table.columns[2].justify = "right"
    busy, rows = busy_shares(trace), by_worker(trace)
    for worker in list(rows)[: MAX_WORKERS_SHOWN if len(rows) > MAX_WORKERS_SHOWN else None]:
        table.add_row(Text(worker), str(len(rows[worker])), percent(busy[worker], 0), "█" * round(20 * busy[worker]))
    hidden = list(rows)[MAX_WORKERS_SHOWN:]
    if hidden:
        mean = sum(busy[worker] for worker in hidden) / len(hidden)
        table.add_row(f"{len(hidden)} more", "", percent(mean, 0), "█" * round(20 * mean), style="dim")
    return table


def trace_sentence(trace: Trace) -> str:
    """What the file holds, in one line."""
    parts = [f"update {trace.update}: {len(trace.calls)} calls in {seconds(trace.end - trace.start)}"]
    if not trace.is_complete:
        parts.append("not finished by the learner")
    if trace.num_damaged:
        parts.append(f"damaged lines left out: {trace.num_damaged}")
    return ", ".join(parts)
