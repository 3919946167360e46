"""Lists the runs in a folder with their state and results."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import json_clean
from wmpo_ray.report.formats import percent, points, seconds
from wmpo_ray.report.result_sections import gain_points, success
from wmpo_ray.report.run_data import mapping, number
from wmpo_ray.watch.run_status import CONFIG, Condition, RunStatus, is_run, one_line, read_object, read_status
from wmpo_ray.watch.status_view import STYLES

COLUMNS = ("run", "state", "started", "took", "updates", "base", "final", "gain", "seed", "machine")
EXPENDABLE = ("machine", "seed", "base", "started", "took")  # in the order in which a narrow terminal loses them
MAX_WIDTH = 26  # of a column: one absurd value must not push the others off the table
Rate = tuple[float, float, float, int]  # value, low, high, number of start states


@dataclass(frozen=True)
class RunRow:
    """One run; what is not known is None."""

    folder: Path
    name: str
    condition: Condition
    stage: str  # that runs, or in which the run stopped; "" once all are done
    started: float | None  # seconds since the epoch
    seconds: float | None
    updates: int | None
    updates_planned: int | None
    base: Rate | None
    final: Rate | None
    gain_points: float | None
    seed: int | None
    machine: str
    note: str  # what is damaged

    @property
    def state(self) -> str:
        words = {Condition.SILENT: "running, silent", Condition.UNREADABLE: "damaged"}
        word = words.get(self.condition, self.condition.value)
        plain = self.condition in (Condition.DONE, Condition.UNREADABLE) or not self.stage
        return word if plain else f"{word} in {self.stage}"

    def to_json(self) -> dict[str, Any]:
        """In JSON's types; a rate is {"value", "low", "high", "num"}."""
        names = ("value", "low", "high", "num")
        data = {**self.__dict__, "folder": str(self.folder), "condition": self.condition.value, "state": self.state}
        for key in ("base", "final"):
            data[key] = dict(zip(names, data[key], strict=True)) if data[key] else None
        return json_clean(data)


def find_runs(folder: Path, now: float | None = None) -> list[RunRow]:
    """The runs directly in `folder`, or the one that it is, newest first. Raises UserError where it is no folder."""
    now = time.time() if now is None else now
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds runs, or set WMPO_RUNS")
    folders = [folder] if is_run(folder) else [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    rows = [run_row(read_status(entry, now)) for entry in folders if is_run(entry)]
    return sorted(rows, key=lambda row: -(row.started or 0.0))


def run_row(status: RunStatus) -> RunRow:
    run = status.run
    config, damage = read_object(status.folder / CONFIG)
    seed, updates = number(run.summary, "seed"), [update for update, _ in run.curve("policy/loss")]
    section = config.get("algorithm", {}) if isinstance(config.get("algorithm"), dict) else {}
    planned = number(config, str(section.get("settings") or section.get("kind") or "grpo"), "num_updates")
    return RunRow(
        folder=status.folder,
        name=one_line(run.name),
        condition=status.condition,
        stage=status.stage,
        started=status.started,
        seconds=_duration(status),
        updates=int(max(updates)) if updates else None,
        updates_planned=None if planned is None else int(planned),
        base=success(run, "base_success"),
        final=success(run, "final_success"),
        gain_points=gain_points(run),
        seed=None if seed is None else int(seed),
        machine=one_line(run.summary.get("machine")),
        note=one_line(" ".join([*run.notes, *([damage] if damage else [])])),
    )


def _duration(status: RunStatus) -> float | None:
    """Of a finished run the seconds of its stages, of another one those from its start to its last sign of life."""
    stages = mapping(status.run.summary, "stages")
    spent = [number(stages, name, "seconds") or 0.0 for name in stages]
    if status.condition is Condition.DONE and spent:
        return sum(spent)
    if status.started is None or status.last_sign is None:
        return None
    return max(0.0, (status.now if not status.condition.is_over else status.last_sign) - status.started)


def run_table(rows: list[RunRow], now: float, width: int | None = None) -> RenderableType:
    """The table that `wmpo runs` prints. width: of the terminal; columns that do not fit are left out, not cut."""
    columns = {name: [cells[name] for cells in (_cells(row, now) for row in rows)] for name in COLUMNS}
    for name in EXPENDABLE:
        if width is None or sum(_width(name, cells) for name, cells in columns.items()) <= width:
            break
        del columns[name]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in columns:
        numeric = name in ("took", "updates", "gain", "seed")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True, max_width=MAX_WIDTH)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    notes = [Text(f"{row.folder.name}: {row.note}", style="red") for row in rows if row.note]
    return Group(table, *notes)


def _cells(row: RunRow, now: float) -> dict[str, Text]:
    """Column -> text."""
    gain = "" if row.gain_points is None else points(row.gain_points).removesuffix(" points")
    return {
        "run": Text(one_line(row.folder.resolve().name), style="bold"),
        "state": Text(row.state, style=STYLES[row.condition]),
        "started": Text(_moment(row.started, now)),
        "took": Text("" if row.seconds is None else seconds(row.seconds)),
        "updates": Text(_updates(row)),
        "base": _rate(row.base),
        "final": _rate(row.final),
        "gain": Text(gain, style="bold"),
        "seed": Text("" if row.seed is None else str(row.seed)),
        "machine": Text(row.machine, style="dim"),
    }


def _width(name: str, cells: list[Text]) -> int:
    """Of a column with the space behind it."""
    return min(MAX_WIDTH, max(len(name), *(cell.cell_len for cell in cells), 0)) + 2


def _moment(when: float | None, now: float) -> str:
    if when is None or not 0 <= when < 1e11:
        return ""
    local = datetime.fromtimestamp(when)
    return local.strftime("%H:%M" if local.date() == datetime.fromtimestamp(now).date() else "%Y-%m-%d %H:%M")


def _updates(row: RunRow) -> str:
    if row.updates is None:
        return ""
    return f"{row.updates}" if row.updates_planned is None else f"{row.updates} of {row.updates_planned}"


def _rate(rate: Rate | None) -> Text:
    if rate is None:
        return Text("")
    value, low, high, _ = rate
    return Text.assemble(percent(value), (f" [{percent(low, 0)}, {percent(high, 0)}]", "dim"))
