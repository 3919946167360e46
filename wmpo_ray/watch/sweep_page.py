"""A sweep on one page: a table of its trials, and their settings as parallel coordinates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.untrusted import read_json
from wmpo_ray.report.card import card, missing
from wmpo_ray.report.charts import Series, line_chart
from wmpo_ray.report.formats import compact, percent
from wmpo_ray.report.markup import Markup, datum, join, table, tag
from wmpo_ray.report.page import document, grid
from wmpo_ray.report.run_data import mapping, number
from wmpo_ray.report.svg import drawing, text

SWEEP = "sweep.json"
WIDTH, HEIGHT, SIDE, TOP, BOTTOM = 1060.0, 320.0, 60.0, 34.0, 24.0
MOST_COURSES = 5  # that have room for their names
SUCCESS = "success"  # the last axis


def write_sweep_page(folder: Path) -> Path:
    """Write `report/index.html` of a sweep from its `sweep.json`; returns its path. Raises UserError where it is none."""
    path = folder / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, render_sweep(read_json(folder / SWEEP)))
    return path


def render_sweep(found: dict[str, Any]) -> str:
    """The whole page."""
    trials = [one for one in found.get("trials", []) if isinstance(one, dict)]
    keys = list(mapping(found, "ranges"))
    shared = found.get("shared_until")
    done = sum(one.get("final") is not None for one in trials)
    about = f"{len(trials)} trials, {done} of them to the end; compared by {found.get('metric')}"
    about += f"; they share everything up to the stage {shared}." if shared else "; they share no stage."
    header = tag("header", tag("h1", f"Sweep of {found.get('name')}"), tag("p", about, class_="verdict"))
    cards = [_coordinates(keys, trials), *_courses(keys, trials), _table(keys, trials)]
    return document(f"Sweep of {found.get('name')}", header, grid("", *cards))


def _success(trial: dict[str, Any]) -> float | None:
    """In the end, or the last on the way."""
    value = number(trial, "final", "value")
    return number(trial, "success") if value is None else value


def _table(keys: Sequence[str], trials: Sequence[dict[str, Any]]) -> Markup:
    rows, taken = [], ["took over from"] if any(_lineage(one) for one in trials) else []
    for one in trials:
        rate, seen = mapping(one, "final"), number(one, "success")
        value, low, high = (number(rate, key) for key in ("value", "low", "high"))
        rows.append(
            [
                one.get("name"),
                *(str(mapping(one, "settings").get(key, "")) for key in keys),
                *(_sources(one) for _ in taken),
                one.get("updates"),
                "" if seen is None else datum(seen, percent(seen)),
                "" if value is None else datum(value, percent(value), class_="big"),
                "" if low is None or high is None else f"{100 * low:.1f} – {percent(high)}",
                one.get("state"),
            ]
        )
    head = ["trial", *keys, *taken, "updates", "on the way", "real success", "95% interval", ""]
    return card(
        "Trials",
        table(head, rows, numeric=range(1, len(head) - 1)) if rows else missing("No trial has reported anything."),
        how="The best first. On the way: the last success that a trial was compared by; a stopped one was behind there."
        + (
            " Settings are those at the end; 2 at 6: with the weights and progress of trial 2 after update 6."
            if taken
            else ""
        ),
        kind="card wide",
    )


# -- populations -------------------------------------------------------------------------------------------------------


def _lineage(trial: dict[str, Any]) -> list[dict[str, Any]]:
    """The stretches of its training in order, each with `until`, `trial` and `settings`; none of a sweep without any."""
    found = trial.get("lineage")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _sources(trial: dict[str, Any]) -> str:
    changes = [(a, b) for a, b in itertools.pairwise(_lineage(trial)) if a.get("trial") != b.get("trial")]
    return ", ".join(f"{before.get('trial')} at {before.get('until')}" for before, _ in changes)


def _courses(keys: Sequence[str], trials: Sequence[dict[str, Any]]) -> list[Markup]:
    """For each setting that is a number, what the best trials were trained with, update by update."""
    shown = [one for one in trials if _lineage(one) and _success(one) is not None][:MOST_COURSES]
    found = []
    for key in keys:
        courses = [_course(key, one) for one in shown]
        values = [value for course in courses for _, value in course]
        if not values or not all(courses):
            continue
        is_log = min(values) > 0 and max(values) > 20 * min(values)
        drawn = [[(x, math.log10(value) if is_log else value) for x, value in course] for course in courses]
        series = [
            Series(f"trial {one.get('name')}", "final" if i == 0 else "third", points)
            for i, (one, points) in enumerate(zip(shown, drawn, strict=True))
        ]
        show = (lambda value: compact(float(f"{10**value:.2g}"))) if is_log else compact
        how = "Of the best trials, the weights that each ended with were trained so; the best in colour."
        found.append(card(f"{key} on the way", line_chart(series[::-1], key, "update", show), how=how))
    return found


def _course(key: str, trial: dict[str, Any]) -> list[tuple[float, float]]:
    """(update, value) at both ends of each stretch; none where a value is no number."""
    points, start = [], 0.0
    for each in _lineage(trial):
        until, value = number(each, "until"), number({"": mapping(each, "settings").get(key)}, "")
        if until is None or value is None:
            return []
        points += [(start, value), (until, value)]
        start = until
    return points


# -- parallel coordinates ------------------------------------------------------------------------------------------


def _coordinates(keys: Sequence[str], trials: Sequence[dict[str, Any]]) -> Markup:
    """A line for each trial, through its value on the axis of each setting, to its success on the last."""
    shown = [(one, value) for one in trials if (value := _success(one)) is not None]
    title = "Settings and success"
    if not shown or not keys:
        return card(title, missing("No trial has reported a success yet."), kind="card wide")
    axes = [_Axis(key, [mapping(one, "settings").get(key) for one, _ in shown]) for key in keys]
    axes.append(_Axis(SUCCESS, [value for _, value in shown]))
    places = [SIDE + i * (WIDTH - 2 * SIDE) / (len(axes) - 1) for i in range(len(axes))]
    order = sorted(range(len(shown)), key=lambda i: shown[i][1])  # the best are drawn last, above the others
    lines = []
    for rank, i in enumerate(order):
        at = [(x, axis.height(i)) for x, axis in zip(places, axes, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        strength = 0.15 + 0.85 * (rank + 1) / len(order)
        name = tag("title", f"{shown[i][0].get('name')}: {percent(shown[i][1])}")
        line = tag("polyline", name, points=points, class_="line solid", opacity=f"{strength:.2f}")
        lines.append(tag("g", line, class_="tone-final" if rank == len(order) - 1 else "tone-third"))
    drawn = drawing(
        WIDTH, HEIGHT, title, *(axis.drawn(x) for x, axis in zip(places, axes, strict=True)), *lines, kind="wide-chart"
    )
    return card(
        title, drawn, how="One line for each trial; the better, the stronger, and the best in colour.", kind="card wide"
    )


class _Axis:
    """Of numbers, in logarithms where they span more than a factor of 20 above 0, or of any other values in order."""

    def __init__(self, name: str, values: Sequence[Any]):
        self.name, self.values = name, list(values)
        numbers = [number({"": value}, "") for value in values]
        self.numbers = [value for value in numbers if value is not None]
        self.is_number = len(self.numbers) == len(values)
        self.kinds = sorted({str(value) for value in values})
        low, high = (min(self.numbers), max(self.numbers)) if self.is_number else (0.0, float(len(self.kinds) - 1))
        self.is_log = self.is_number and low > 0 and high > 20 * low
        self.low, self.high = low, high

    def height(self, place: int) -> float:
        """Of the value at a place."""
        value = self.numbers[place] if self.is_number else float(self.kinds.index(str(self.values[place])))
        return self._at(value)

    def _at(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        share = 0.5 if high <= low else ((math.log(value) if self.is_log else value) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def drawn(self, x: float) -> Markup:
        show = (lambda value: percent(value)) if self.name == SUCCESS else compact
        ticks = [(value, show(value)) for value in (self.low, self.high)]
        if not self.is_number:
            ticks = [(float(i), kind) for i, kind in enumerate(self.kinds)]
        return join(
            [
                tag("line", x1=round(x, 1), x2=round(x, 1), y1=TOP, y2=HEIGHT - BOTTOM, class_="axis"),
                text(x, 14, self.name, text_anchor="middle", class_="axis-label"),
                *(text(x + 6, self._at(value) - 3, label, class_="tick") for value, label in dict(ticks).items()),
            ]
        )
