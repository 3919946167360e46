"""Who did what when in one update: a row for each worker, and a bar for each role of where its time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wmpo_ray.report.card import card, missing
from wmpo_ray.report.charts import legend
from wmpo_ray.report.formats import percent, seconds
from wmpo_ray.report.markup import Markup, datum, join, tag
from wmpo_ray.report.svg import Scale, drawing, text, ticks
from wmpo_ray.report.trace_data import OTHER, Call, Trace, busy_shares, by_worker, exclusive, phase_seconds

TITLE = "One update, worker by worker"
WIDTH, LEFT, RIGHT, ROW, AXIS = 1080.0, 118.0, 52.0, 19.0, 26.0
MAX_ROWS = 40
MAX_RECTANGLES = 3000
MAX_COLUMNS = 1200  # a rectangle is at least one column wide
MIN_LABEL = 0.06  # share of a bar below which its name has no room
PHASES = (  # those that have a colour of their own
    *("policy", "denoise", "decode", "spool", "score", "verify", "batch", "step", "checkpoint", "encode"),
    *("load", "evaluate", "compare"),
)
ALIASES = {"compare_labels": "compare", "evaluate_saved": "evaluate", "load_weights": "load"}


class Piece(NamedTuple):
    """The call or span that one rectangle shows."""

    phase: str
    call: str
    start: float
    end: float


def timeline_section(trace: Trace | None) -> Markup:
    """The newest complete update of a run as a picture."""
    if trace is None or not trace.calls or trace.end <= trace.start:
        return card(TITLE, missing("Nothing yet: the folder traces holds no update."), kind="card wide")
    rows = by_worker(trace)
    shown = _chosen(rows)
    lead = [
        f"The work for update {trace.update}, counted from 0, took ",
        _time(trace.end - trace.start),
        f" on {len(rows)} workers",
    ]
    lead.append("." if len(shown) == len(rows) else f"; {len(shown)} of them are shown, some of every role.")
    if not trace.is_complete:
        lead.append(" The learner has not finished it.")
    if trace.num_damaged:
        lead.append(f" Damaged lines of its file, left out: {trace.num_damaged}.")
    sums = {role: _named(phases) for role, phases in phase_seconds(trace).items()}
    found = {phase for phases in sums.values() for phase in phases}
    return card(
        TITLE,
        tag("p", *lead, class_="lead"),
        legend([(phase, tone(phase)) for phase in (*PHASES, OTHER) if phase in found]),
        _timeline(trace, shown),
        tag("h3", "Where each role's time goes"),
        _role_bars(sums),
        how="A gap is a worker that waits. The number on the right is the share of the update in which it worked; "
        "other is time inside a call that no phase accounts for. Point at a colour to read it.",
        kind="card wide timeline-card",
    )


def tone(phase: str) -> str:
    return f"phase-{phase}" if phase in PHASES else "faint"


def _phase(name: str) -> str:
    name = ALIASES.get(name, name)
    return name if name in PHASES else OTHER


def _named(phases: dict[str, float]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, spent in phases.items():
        sums[_phase(name)] = sums.get(_phase(name), 0.0) + spent
    return sums


def _time(value: float) -> Markup:
    return datum(round(value, 6), seconds(value))


def _chosen(rows: dict[str, list[Call]]) -> dict[str, list[Call]]:
    """At most MAX_ROWS workers: the roles take turns, so that the few of a role are not lost among the many."""
    if len(rows) <= MAX_ROWS:
        return rows
    by_role: dict[str, list[str]] = {}
    for worker, calls in rows.items():
        by_role.setdefault(calls[0].role, []).append(worker)
    turns = [(turn, worker) for workers in by_role.values() for turn, worker in enumerate(workers)]
    kept = {worker for _, worker in sorted(turns, key=lambda entry: entry[0])[:MAX_ROWS]}
    return {worker: calls for worker, calls in rows.items() if worker in kept}


def _timeline(trace: Trace, rows: dict[str, list[Call]]) -> Markup:
    height = ROW * len(rows) + AXIS
    scale = Scale(0.0, trace.end - trace.start, LEFT, WIDTH - RIGHT)
    bottom = height - AXIS + 2
    parts = []
    for value in ticks(scale.low, scale.high, 8):
        x = scale(value)
        parts.append(tag("line", x1=x, x2=x, y1=0, y2=bottom, class_="gridline"))
        parts.append(text(x, bottom + 15, f"{value:g} s", text_anchor="middle", class_="tick"))
    busy = busy_shares(trace)
    drawn = pieces(trace, rows)
    for i, worker in enumerate(rows):
        top = i * ROW + 2
        label = worker if len(worker) <= 17 else f"{worker[:8]}…{worker[-8:]}"
        parts.append(text(LEFT - 8, top + 12, label, text_anchor="end", class_="tick"))
        parts += [_rectangle(piece, worker, scale, top) for piece in drawn[worker]]
        parts.append(text(WIDTH - RIGHT + 8, top + 12, percent(busy[worker], 0), class_="tick"))
    return tag("div", drawing(WIDTH, height, TITLE, *parts, kind="timeline"), class_="scroll")


def _rectangle(piece: Piece, worker: str, scale: Scale, top: float) -> Markup:
    x = scale(piece.start)
    width = max(0.3, round(scale(piece.end) - x, 2))
    note = f"{worker}: {piece.phase} ({piece.call}), {piece.start:.2f} s to {piece.end:.2f} s"
    shape = {"x": x, "y": top, "width": width, "height": ROW - 4}
    return tag("rect", tag("title", note), **shape, class_=f"fill tone-{tone(piece.phase)}")


def pieces(trace: Trace, rows: dict[str, list[Call]]) -> dict[str, list[Piece]]:
    """What to draw of each worker, in seconds since the trace's start; at most MAX_RECTANGLES of all rows together.

    Time is cut into columns, a column shows what took most of it, and equal neighbours are one piece; where that is
    still too much the columns are made wider. Of work shorter than a column as many are shown as it fills in all.
    """
    columns = MAX_COLUMNS
    while True:
        found = {worker: _row(trace, calls, columns) for worker, calls in rows.items()}
        if sum(map(len, found.values())) <= MAX_RECTANGLES:
            return found
        columns //= 2


def _row(trace: Trace, calls: Sequence[Call], columns: int) -> list[Piece]:
    step = (trace.end - trace.start) / columns
    spent: list[dict[tuple[str, str], float]] = [{} for _ in range(columns)]
    for call in calls:
        for name, start, end in exclusive(call):
            start, end = start - trace.start, end - trace.start
            for column in range(int(start / step), min(columns, int(end / step) + 1)):
                inside = min(end, (column + 1) * step) - max(start, column * step)
                if inside > 0:
                    key = (_phase(name), call.name)
                    spent[column][key] = spent[column].get(key, 0.0) + inside
    row: list[Piece] = []
    unseen = 0.0  # seconds of work that no piece shows yet
    for column, shares in enumerate(spent):
        unseen += sum(shares.values())
        if not shares or (unseen < step / 2 and not _stands_alone(spent, column)):
            continue
        unseen = max(unseen - step, -step / 2)
        phase, call_name = max(shares, key=lambda key: shares[key])
        begin, end = column * step, (column + 1) * step
        if row and row[-1][:2] == (phase, call_name) and row[-1].end >= begin - step / 2:
            row[-1] = row[-1]._replace(end=end)
        else:
            row.append(Piece(phase, call_name, begin, end))
    return row


def _stands_alone(spent: list[dict[tuple[str, str], float]], column: int) -> bool:
    """Whether neither neighbour shows anything: a call shorter than a column must not vanish."""
    return not any(spent[i] for i in (column - 1, column + 1) if 0 <= i < len(spent))


def _role_bars(sums: dict[str, dict[str, float]]) -> Markup:
    rows = []
    for role, phases in sums.items():
        whole = sum(phases.values())
        if not whole:
            continue
        order = sorted(phases, key=lambda phase: (*PHASES, OTHER).index(phase))
        segments = [_segment(phase, phases[phase], phases[phase] / whole) for phase in order]
        name = tag("span", role, class_="role-name")
        rows.append(tag("div", name, tag("div", *segments, class_="shares"), _time(whole), class_="role-row"))
    return join(rows)


def _segment(phase: str, spent: float, share: float) -> Markup:
    label = f"{phase} {percent(share, 0)}" if share >= MIN_LABEL + 0.008 * len(phase) else None
    style = f"flex-grow:{share:.4f}"
    note = f"{phase}: {seconds(spent)}, {percent(share)}"
    return tag("span", label, title=note, style=style, class_=f"share tone-{tone(phase)}")
