"""Two runs on one page, their curves laid over each other."""

from __future__ import annotations

from collections.abc import Callable

from wmpo_ray.report.card import card, missing
from wmpo_ray.report.charts import Series, line_chart
from wmpo_ray.report.formats import percent, seconds
from wmpo_ray.report.markup import Markup, join, table, tag
from wmpo_ray.report.optimize_sections import imagined_curve, real_curve, rollout_curve
from wmpo_ray.report.page import document, grid
from wmpo_ray.report.recipe_view import has_queue, recipe_name, rounds_note
from wmpo_ray.watch.comparison import FINAL, LABELS, Comparison, admitted_shares, verdicts, work_seconds
from wmpo_ray.watch.run_status import RunStatus

TONES = ("run-a", "run-b")
NOTHING = "Nothing yet: neither run has logged such metrics."


def render_comparison(comparison: Comparison) -> str:
    """The whole page."""
    runs = (comparison.a, comparison.b)
    with_queue = any(has_queue(one.run) for one in runs)
    curves = [_trained(runs), _real(runs), _admitted(runs), _time(runs)] if with_queue else [_real(runs), _time(runs)]
    verdicts_or_none = [_verdicts(runs)] if with_queue else []
    parts = [
        _header(comparison),
        grid("", _metrics(comparison)),
        grid("Curves", *curves),
        grid("", *verdicts_or_none, _settings(comparison)),
    ]
    return document(f"{comparison.a.run.name} and {comparison.b.run.name}, compared", join(parts))


def _header(comparison: Comparison) -> Markup:
    lines = []
    for label, tone, one in zip(LABELS, TONES, (comparison.a, comparison.b)):
        seed = one.run.summary.get("seed")
        recipe = recipe_name(one.run.summary).short
        names = [one.folder.resolve().name, one.run.name, recipe, f"seed {seed}" if isinstance(seed, int) else ""]
        about = " · ".join(filter(None, dict.fromkeys([*names, one.condition.value])))
        swatch = tag("i", class_=f"swatch tone-{tone}")
        lines.append(tag("p", swatch, tag("b", label), f" {about}", class_="verdict"))
        rounds = rounds_note(one.run)
        lines += [tag("p", f"{label}: {rounds}", class_="lead")] if rounds else []
    final = [row for row in comparison.rows if row.label == FINAL and row.verdict]
    lines += [tag("p", f"Final success: {row.verdict}.", class_="verdict") for row in final]
    notes = [tag("p", note, class_="note") for note in comparison.notes]
    return tag("header", tag("h1", "Two runs compared"), *lines, *notes)


def _metrics(comparison: Comparison) -> Markup:
    if not comparison.rows:
        return card("Metrics", missing(NOTHING), kind="card wide")
    rows = [
        [row.label, row.a, row.b, row.difference, tag("b", row.verdict) if row.is_significant else row.verdict]
        for row in comparison.rows
    ]
    how = (
        "In brackets: 95% intervals. Bold: a difference that chance alone would make less than once in twenty. Where a "
        "run keeps the outcome of each start, both are compared start by start; elsewhere the tests are careful, because "
        "they ignore that the start states are the same. One run of each: with other seeds the difference may be another."
    )
    return card("Metrics", table(["", "A", "B", "B − A", ""], rows), how=how, kind="card wide comparison")


def _series(runs: tuple[RunStatus, RunStatus], points: list[list[tuple[float, float]]]) -> list[Series]:
    strokes = ("solid", "dashed")
    made = [
        Series(label, tone, curve, (), stroke) for label, tone, curve, stroke in zip(LABELS, TONES, points, strokes)
    ]
    return [one for one in made if one.points]


def _curves(
    title: str, series: list[Series], how: str, y_format: Callable[[float], str], y_high: float | None = None
) -> Markup:
    if not series:
        return card(title, missing(NOTHING))
    return card(title, line_chart(series, title, "update", y_format, y_low=0.0, y_high=y_high), how=how)


def _whole_percent(value: float) -> str:
    return percent(value, 0)


def _trained(runs: tuple[RunStatus, RunStatus]) -> Markup:
    """Success of what the policies were trained on, in whichever world that was."""
    imagined, rolled_out = ([curve(one.run) for one in runs] for curve in (imagined_curve, rollout_curve))
    title, how = "Imagined success", "As the reward model judges what was imagined for each update."
    if any(rolled_out):
        title = "Success in training" if any(imagined) else "Rollout success"
        judge = "the reward model judges what is imagined, the environment what is rolled out in it"
        how = f"Of the rollouts for each update: {judge}."
    series = _series(runs, [first or second for first, second in zip(imagined, rolled_out)])
    return _curves(title, series, how, _whole_percent, y_high=1.0)


def _real(runs: tuple[RunStatus, RunStatus]) -> Markup:
    series = []
    for label, tone, stroke, one in zip(LABELS, TONES, ("solid", "dashed"), runs):
        points, intervals = real_curve(one.run)
        if points:
            series.append(Series(label, tone, points, intervals, stroke))
    how = "Measured on the way, with 95% intervals; update 0 is the base policy."
    return _curves("Real success", series, how, _whole_percent, y_high=1.0)


def _admitted(runs: tuple[RunStatus, RunStatus]) -> Markup:
    series = _series(runs, [admitted_shares(one.run) for one in runs])
    how = "The rest is rolled out for nothing: most of it had equal outcomes in the whole group."
    return _curves("Admitted share of the groups", series, how, _whole_percent, y_high=1.0)


def _time(runs: tuple[RunStatus, RunStatus]) -> Markup:
    series = _series(runs, [work_seconds(one.run) for one in runs])
    how = "Seconds of work, all workers together: more workers do not make them fewer."
    return _curves("Seconds per update", series, how, seconds)


def _verdicts(runs: tuple[RunStatus, RunStatus]) -> Markup:
    title = "Verdicts of the queue"
    sums = [{name: sum(curve.values()) for name, curve in verdicts(one.run).items()} for one in runs]
    names = [name for name in {**sums[0], **sums[1]} if any(found.get(name) for found in sums)]
    if not names:
        return card(title, missing(NOTHING))
    rows = [[name, *(_count(found, name) for found in sums)] for name in names]
    return card(title, table(["groups", *LABELS], rows, numeric=(1, 2)), how="All updates together.")


def _count(found: dict[str, float], name: str) -> str:
    whole = sum(found.values())
    return f"{found.get(name, 0.0):,.0f} ({percent(found.get(name, 0.0) / whole, 0)})" if whole else "–"


def _settings(comparison: Comparison) -> Markup:
    title = "Settings that differ"
    if not comparison.differences:
        told = "Their settings cannot be compared." if comparison.notes else "None: the two runs have equal settings."
        return card(title, missing(told))
    rows = [[tag("code", key), before, after] for key, before, after in comparison.differences]
    return card(title, table(["setting", *LABELS], rows))
