"""Two runs side by side: their metrics, whether they differ, and how their settings do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wmpo_ray.config.dumping import config_differences
from wmpo_ray.config.loading import read_config_json
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.core.types import Verdict as GroupVerdict
from wmpo_ray.report.formats import compact, percent, points, seconds
from wmpo_ray.report.optimize_sections import TIMES, imagined_curve, rollout_curve
from wmpo_ray.report.recipe_view import rounds_note
from wmpo_ray.report.result_sections import gain_points, success
from wmpo_ray.report.run_data import RunData, mapping, number
from wmpo_ray.report.svg import Format
from wmpo_ray.watch.paired_outcomes import Interval, PairedOutcomes, paired_verdict
from wmpo_ray.watch.run_status import CONFIG, RunStatus, one_line, read_status
from wmpo_ray.watch.significance import Rate, Verdict, compare_rates, difference_interval, gains_test

LABELS = ("A", "B")
FINAL = "final success"


@dataclass(frozen=True)
class MetricRow:
    """One metric of both runs as text; `verdict` says whether they differ, "" where that cannot be tested."""

    label: str
    a: str
    b: str
    difference: str = ""
    verdict: str = ""
    is_significant: bool = False


@dataclass(frozen=True)
class Comparison:
    a: RunStatus
    b: RunStatus
    rows: list[MetricRow]
    differences: list[tuple[str, str, str]]  # setting, value of A, value of B
    notes: list[str]


def compare_runs(a: Path, b: Path) -> Comparison:
    """Read two runs. Raises UserError where one is no folder of a run; what is damaged becomes a note."""
    first, second = read_status(a), read_status(b)
    notes = [f"{label}: {note}" for label, one in zip(LABELS, (first, second)) for note in one.run.notes]
    differences: list[tuple[str, str, str]] = []
    try:
        configs = [read_config_json(folder / CONFIG) for folder in (a, b)]
        differences = [_setting(line) for line in config_differences(*configs)]
    except ConfigError as error:
        notes.append(f"The settings cannot be compared: {' '.join(str(error).splitlines())}")
    paired = PairedOutcomes.read((a, b), notes)
    return Comparison(first, second, _rows(first.run, second.run, paired), differences, notes)


def _setting(line: str) -> tuple[str, str, str]:
    key, _, values = line.partition(": ")
    before, _, after = values.partition(" -> ")
    return key, before, after


def _rows(a: RunData, b: RunData, paired: PairedOutcomes | None) -> list[MetricRow]:
    runs = (a, b)
    base = [_result(run, "base_success") for run in runs]
    final = [_result(run, "final_success") for run in runs]
    rows = [
        _rate_row("base success", base, paired and paired.base),
        _rate_row(FINAL, final, paired and paired.final),
        MetricRow("the same, start by start", "", "", "", paired.sequential) if paired and paired.sequential else None,
        _gain_row([gain_points(run) for run in runs], base, final, paired),
        _rate_row("real success on the way, last", [_real(run) for run in runs]),
        _rate_row("labels right at the gate", [_agreement(run) for run in runs]),
        _plain_row("imagined success, last", [_last_value(imagined_curve(run)) for run in runs], percent),
        _plain_row("rollout success, last", [_last_value(rollout_curve(run)) for run in runs], percent),
        _plain_row("reward model F1", [number(run.stage_metrics("reward-model"), "f1") for run in runs], compact),
        _plain_row("updates", [_last_update(run) for run in runs], "{:.0f}".format),
        _plain_row(
            "groups decided",
            [sum(sum(curve.values()) for curve in verdicts(run).values()) for run in runs],
            "{:,.0f}".format,
        ),
        _plain_row("admitted share", [admitted_share(run) for run in runs], percent),
        _plain_row("time of an update", [_update_seconds(run) for run in runs], seconds),
        _plain_row("time of all stages", [_all_seconds(run) for run in runs], seconds),
    ]
    return [row for row in rows if row is not None]


# -- metrics of one run ------------------------------------------------------------------------------------------


def _result(run: RunData, key: str) -> Rate | None:
    found = success(run, key)
    return None if found is None else Rate(*found)


def _real(run: RunData) -> Rate | None:
    """The last measurement on the way, at whatever update that was."""
    for line in reversed(run.metrics):
        value, low, high = (number(line, f"real/success_{name}") for name in ("rate", "low", "high"))
        if value is not None and low is not None and high is not None:
            return Rate(value, low, high)
    return None


def _agreement(run: RunData) -> Rate | None:
    metrics = run.stage_metrics("gate")
    value, num = number(metrics, "label_agreement"), number(metrics, "num")
    if value is None or num is None or not 0 <= value <= 1 or num < 1:
        return None
    return Rate(value, *wilson_interval(round(value * num), round(num)), round(num))


def _last_value(curve: Sequence[tuple[float, float]]) -> float | None:
    return curve[-1][1] if curve else None


def _last_update(run: RunData) -> float | None:
    curve = run.curve("policy/loss")
    return curve[-1][0] if curve else None


def verdicts(run: RunData) -> dict[str, dict[float, float]]:
    """Verdict -> update -> number of groups."""
    curves = {verdict.value: dict(run.curve(f"queue/{verdict.value}")) for verdict in GroupVerdict}
    return {name: {update: max(0.0, n) for update, n in curve.items()} for name, curve in curves.items() if curve}


def admitted_shares(run: RunData) -> list[tuple[float, float]]:
    """(update, share of the decided groups that were admitted)."""
    found = verdicts(run)
    totals = {update: sum(curve.get(update, 0.0) for curve in found.values()) for update in found.get("admit", {})}
    return [(update, found["admit"][update] / total) for update, total in totals.items() if total > 0]


def admitted_share(run: RunData) -> float | None:
    found = verdicts(run)
    total = sum(sum(curve.values()) for curve in found.values())
    return sum(found.get("admit", {}).values()) / total if total else None


def work_seconds(run: RunData) -> list[tuple[float, float]]:
    """(update, seconds of work that it took all workers together)."""
    curves = [dict(run.curve(f"time/{name}_s")) for name, _ in TIMES]
    updates = sorted({update for curve in curves for update in curve})
    return [(update, sum(max(0.0, curve.get(update, 0.0)) for curve in curves)) for update in updates]


def _update_seconds(run: RunData) -> float | None:
    """Wall-clock seconds of an update, on average."""
    spent, updates = number(run.summary, "stages", "optimize", "seconds"), len(run.curve("policy/loss"))
    return spent / updates if spent is not None and updates else None


def _all_seconds(run: RunData) -> float | None:
    stages = mapping(run.summary, "stages")
    found = [number(stages, name, "seconds") for name in stages]
    return sum(value for value in found if value is not None) if found else None


# -- rows --------------------------------------------------------------------------------------------------------


def _rate_row(
    label: str, rates: Sequence[Rate | None], paired: tuple[np.ndarray, np.ndarray] | None = None
) -> MetricRow | None:
    """paired: outcomes of A and B on the same starts."""
    a, b = rates
    if a is None and b is None:
        return None
    if a is None or b is None:
        return MetricRow(label, _rate(a), _rate(b))
    if paired is not None:
        verdict, difference, interval = paired_verdict(paired)
        return MetricRow(label, _rate(a), _rate(b), _points(difference, interval), *_describe(verdict, difference))
    verdict, difference = compare_rates(a, b), b.value - a.value
    shown = _points(difference, difference_interval(a, b))
    return MetricRow(label, _rate(a), _rate(b), shown, *_describe(verdict, difference))


def _gain_row(
    gains: list[float | None], base: list[Rate | None], final: list[Rate | None], paired: PairedOutcomes | None
) -> MetricRow | None:
    if gains == [None, None]:
        return None
    intervals: Sequence[Interval | None] = [
        difference_interval(first, last) if first and last else None for first, last in zip(base, final, strict=True)
    ]
    if paired:
        intervals = paired.gain_intervals
    a, b = ("–" if gain is None else _points(gain / 100, interval) for gain, interval in zip(gains, intervals))
    if None in gains or None in base or None in final:
        return MetricRow("gain", a, b)
    difference = (gains[1] or 0.0) - (gains[0] or 0.0)
    four = (base[0], final[0], base[1], final[1])
    verdict = paired.gains_verdict if paired else gains_test(*(rate for rate in four if rate is not None))
    return MetricRow("gain", a, b, points(difference), *_describe(verdict, difference))


def _plain_row(label: str, values: Sequence[float | None], show: Format) -> MetricRow | None:
    if not any(values):
        return None
    a, b = ("–" if value is None else show(value) for value in values)
    return MetricRow(label, a, b)


def _describe(verdict: Verdict, difference: float) -> tuple[str, bool]:
    return verdict.sentence(difference), verdict.is_significant


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    of = f" of {rate.num:,}" if rate.num else ""
    return f"{percent(rate.value)} [{percent(rate.low)}, {percent(rate.high)}]{of}"


def _points(difference: float, interval: Interval | None) -> str:
    brackets = "" if interval is None else f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
    return points(100 * difference) + brackets


# -- tables ------------------------------------------------------------------------------------------------------


def comparison_tables(comparison: Comparison) -> RenderableType:
    """What `wmpo compare` prints."""
    parts: list[RenderableType] = []
    for label, one in zip(LABELS, (comparison.a, comparison.b)):
        parts.append(Text.assemble((f"{label}  ", "bold"), str(one.folder), (f"  {one.sentence()}", "dim")))
        if (rounds := rounds_note(one.run)) is not None:
            parts.append(Text(f"{label}: {rounds}", style="dim"))
    parts += [Text(one_line(note), style="red") for note in comparison.notes]
    table = Table("metric", "A", "B", "B − A", "", box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for row in comparison.rows:
        style = "bold" if row.is_significant else "dim"
        table.add_row(row.label, row.a, row.b, row.difference, Text(row.verdict, style=style))
    parts += ["", table if comparison.rows else Text("Neither run has metrics yet.", style="dim")]
    settings = Table("setting", "A", "B", box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for setting in comparison.differences:
        settings.add_row(*(Text(one_line(value)) for value in setting))
    same = not comparison.differences and not any("settings" in note for note in comparison.notes)
    parts += ["", settings if comparison.differences else Text("All settings are equal." if same else "", style="dim")]
    return Group(*parts)
