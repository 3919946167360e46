"""The live picture of a run for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wmpo_ray.report.formats import compact, percent, points
from wmpo_ray.report.optimize_sections import imagined_curve, rollout_curve
from wmpo_ray.report.recipe_view import num_rounds
from wmpo_ray.report.result_sections import gain_points, policies, success
from wmpo_ray.report.run_data import mapping, number
from wmpo_ray.watch.run_status import Condition, RunStatus, age, one_line
from wmpo_ray.watch.sparkline import sparkline

STYLES = {
    Condition.RUNNING: "bold green",
    Condition.DONE: "bold green",
    Condition.SILENT: "bold yellow",
    Condition.PREEMPTED: "bold yellow",
    Condition.STOPPED: "bold yellow",
    Condition.FAILED: "bold red",
    Condition.KILLED: "bold red",
    Condition.UNREADABLE: "bold red",
}
MARKS = {
    Condition.RUNNING: "●",
    Condition.SILENT: "◌",
    Condition.DONE: "✓",
    Condition.FAILED: "✗",
    Condition.KILLED: "✗",
    Condition.UNREADABLE: "✗",
}
REFRESHES_PER_S = 2
MAX_FAULTS = 5
OTHER_LINES = 21  # of a frame, beside the workers
SPARK_WIDTH = 30
MARGIN = 0.05  # of success, above and below the curves: else noise would look like a rise


def watch(console: Console, look: Callable[[], RunStatus], wait: Callable[[float], None]) -> RunStatus:
    """Show a run until it ends; `look` reads it, `wait` sleeps for so many seconds. Returns the last look."""
    status = look()
    with Live(frame(status, console.height), console=console, auto_refresh=False) as live:
        while not status.condition.is_over:
            wait(1 / REFRESHES_PER_S)
            status = look()
            live.update(frame(status, console.height), refresh=True)
    return status


def frame(status: RunStatus, height: int | None = None) -> RenderableType:
    """One picture; at most as many workers are listed as fit into `height` lines, all of them where it is None."""
    live = not status.condition.is_over
    parts: list[RenderableType] = [_head(status), _stages(status)]
    if live and (progress := _progress(status)) is not None:
        parts.append(progress)
    if panels := _panels(status):
        parts.append(Columns(panels, expand=False, padding=(0, 1)))
    workers = _dictionaries(status.status.get("workers"))
    if live and workers:
        parts.append(_worker_table(workers, status.now, None if height is None else max(4, height - OTHER_LINES)))
    parts += _fault_lines(status)
    parts += [Text(one_line(note), style="red") for note in status.run.notes]
    return Group(*parts)


def _head(status: RunStatus) -> Text:
    style = STYLES[status.condition]
    text = Text.assemble((f"{MARKS.get(status.condition, '■')} ", style), (one_line(status.run.name), "bold"), "  ")
    text.append(status.sentence(), style=style)
    if not status.condition.is_over and status.started is not None:
        text.append(f"  since {age(status.now - status.started)}", style="dim")
    for key in ("job", "dashboard"):
        value = _text(status.status, key)
        if value and not status.condition.is_over:
            text.append(f"  {value}", style="dim")
    return text


def _stages(status: RunStatus) -> Text:
    text = Text()
    for name in status.stages:
        if name in status.stages_done:
            text.append(f"✓ {name}  ", style="green")
        elif name == status.stage:
            text.append(f"{'▶' if not status.condition.is_over else '■'} {name}  ", style=STYLES[status.condition])
        else:
            text.append(f"· {name}  ", style="dim")
    return text


def _progress(status: RunStatus) -> RenderableType | None:
    progress = mapping(status.status, "progress")
    done, total = number(progress, "done"), number(progress, "total")
    if done is None or not total or total < 0:
        return None
    row = Table.grid(padding=(0, 1))
    metrics = [(key, number({"": value}, "")) for key, value in mapping(progress, "metrics").items()]
    told = "  ".join(f"{one_line(key)} {compact(value)}" for key, value in metrics if value is not None)
    bar = ProgressBar(total=total, completed=min(max(done, 0.0), total), width=40)
    row.add_row(Text(status.stage), bar, f"{done:,.0f} of {total:,.0f}", Text(told, style="dim"))
    return row


# -- panels ------------------------------------------------------------------------------------------------------


def _panels(status: RunStatus) -> list[Panel]:
    found = [("learning", _learning(status)), ("result", _result(status))]
    if not status.condition.is_over:
        found += [("queue", _queue(status)), ("rates", _rates(status))]
    return [
        Panel(table, title=title, title_align="left", border_style="dim", expand=False)
        for title, table in found
        if table.row_count
    ]


def _learning(status: RunStatus) -> Table:
    table, data, rounds = Table.grid(padding=(0, 1)), status.status, num_rounds(status.run)
    if rounds > 1:
        table.add_row("round", f"{status.current.round} of {rounds}", "")
    update, planned = number(data, "update"), number(data, "num_updates")
    if update is not None:
        of = "" if planned is None else f" of {planned:.0f}"
        version, offered = number(data, "version"), number(data, "offered")
        held = "" if version is None else f"weights {version:.0f}"
        behind = f", offered {offered:.0f}" if None not in (version, offered) and version != offered else ""
        table.add_row("update", f"{update:.0f}{of}", Text(held + behind, style="dim"))
    curves = _success_curves(status)
    every = [value for curve in curves.values() for value in curve] or [0.0]
    for (label, curve), style in zip(curves.items(), ("magenta", "yellow", "cyan")):
        value = number(data, f"{label}_success")
        value = curve[-1] if value is None and curve else value
        if value is None:
            continue
        low, high = number(data, "real_low"), number(data, "real_high")
        interval = "" if label != "real" or low is None or high is None else f" [{percent(low, 0)}, {percent(high, 0)}]"
        blocks = sparkline(curve, SPARK_WIDTH, min(every) - MARGIN, max(every) + MARGIN)
        table.add_row(label, percent(value) + interval, Text(blocks, style=style))
    return table


def _success_curves(status: RunStatus) -> dict[str, list[float]]:
    """Success in training, under the name of the world that the rollouts are made in, and real success."""
    run = status.current
    curves = {"imagined": imagined_curve(run), "rollout": rollout_curve(run), "real": run.curve("real/success_rate")}
    return {name: [value for _, value in curve] for name, curve in curves.items()}


def _result(status: RunStatus) -> Table:
    table = Table.grid(padding=(0, 1))
    for key, label, _ in policies(status.run):
        found = success(status.run, key)
        if found is not None:
            value, low, high, num = found
            table.add_row(
                label, f"{percent(value)} [{percent(low)}, {percent(high)}]", Text(f"of {num:,}", style="dim")
            )
    gain = gain_points(status.run)
    if gain is not None:
        table.add_row("gain", Text(points(gain), style="bold"))
    return table


def _queue(status: RunStatus) -> Table:
    table, queue = Table.grid(padding=(0, 1)), mapping(status.status, "queue")
    in_flight, admitted, needed = (number(queue, key) for key in ("in_flight", "admitted", "needed"))
    if admitted is not None and needed:
        bar = ProgressBar(total=max(needed, 1.0), completed=min(max(admitted, 0.0), needed), width=16)
        table.add_row("admitted", f"{admitted:.0f} of {needed:.0f}", bar)
    if in_flight is not None:
        table.add_row("in flight", f"{in_flight:.0f}", "")
    for verdict, count in list(mapping(queue, "verdicts").items())[:8]:
        shown = number({"": count}, "")
        if shown:
            table.add_row(Text(one_line(verdict), style="dim"), Text(f"{shown:,.0f}", style="dim"), "")
    return table


def _rates(status: RunStatus) -> Table:
    table = Table.grid(padding=(0, 1))
    for key, value in list(mapping(status.status, "rates").items())[:8]:
        shown = number({"": value}, "")
        if shown is not None:
            name, _, unit = one_line(key).rpartition("_per_")
            table.add_row(Text(name or unit), f"{shown:,.1f}", Text(f"per {unit}" if name else "", style="dim"))
    return table


# -- workers and faults ------------------------------------------------------------------------------------------


def _worker_table(workers: list[dict[str, Any]], now: float, limit: int | None) -> Table:
    table = Table("worker", "phase", "does", "for", "MiB", "GPU MiB", "weights", "losses", pad_edge=False, box=None)
    table.header_style = "dim"
    for column in (3, 4, 5, 7):
        table.columns[column].justify = "right"
    ordered = sorted(workers, key=lambda worker: _text(worker, "phase") == "ready")  # what is amiss first
    shown = workers if limit is None or len(workers) <= limit else ordered[: limit - 1]
    for worker in shown:
        phase, since = _text(worker, "phase"), number(worker, "since")
        doing = _text(worker, "doing")
        table.add_row(
            Text(_text(worker, "name")),
            Text(phase, style="green" if phase == "ready" else "yellow"),
            Text(doing or "waits", style="" if doing else "dim"),
            "" if since is None else age(now - since),
            _mebibytes(worker, "memory_bytes"),
            _mebibytes(worker, "gpu_memory_bytes"),
            Text(_text(worker, "weights")[:8], style="dim"),
            _losses(worker),
        )
    if len(shown) < len(workers):
        rest = ordered[len(shown) :]
        busy = sum(bool(_text(worker, "doing")) for worker in rest)
        table.add_row(f"{len(rest)} more", "", f"{busy} busy", style="dim")
    return table


def _losses(worker: dict[str, Any]) -> Text:
    losses = number(worker, "losses")
    return Text(f"{losses:.0f}", style="yellow") if losses else Text("")


def _mebibytes(worker: dict[str, Any], key: str) -> str:
    value = number(worker, key)
    return f"{value / 2**20:,.0f}" if value else ""


def _fault_lines(status: RunStatus) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for fault in status.faults[-MAX_FAULTS:]:
        when = number(fault, "time")
        told = "" if when is None else f"{age(status.now - when)} ago"
        words = (f"{told:>10}  ", "dim"), (_text(fault, "event"), "yellow"), ("  " + _text(fault, "text"), "")
        lines.append(Text.assemble(*words, overflow="ellipsis", no_wrap=True))
    return [Text("last faults", style="dim"), *lines] if lines else []


def _text(data: dict[str, Any], key: str) -> str:
    return one_line(data.get(key))


def _dictionaries(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
