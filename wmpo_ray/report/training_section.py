"""Losses of the supervised trainings, and learners from outside beside the run's own."""

from __future__ import annotations

from wmpo_ray.report.card import card, missing
from wmpo_ray.report.charts import SMALL, Series, line_chart
from wmpo_ray.report.formats import compact, percent, points
from wmpo_ray.report.markup import Markup, datum, table, tag
from wmpo_ray.report.recipe_view import recipe_name
from wmpo_ray.report.run_data import RunData, mapping, number

KNOWN = {  # series -> name and tone of its chart
    "policy": ("Behaviour cloning", "base"),
    "world-model": ("World model", "imagined"),
    "verifier": ("Verifier", "second"),
    "reward-model": ("Reward model", "strong"),
}


def training_section(run: RunData) -> Markup:
    """One small chart of the loss for each training."""
    order = [*KNOWN, *(name for name in run.trainings if name not in KNOWN)]
    charts = [chart for name in order if (chart := _chart(run, name)) is not None]
    title = "Losses of the supervised trainings"
    if not charts:
        return card(title, missing("No losses: no model has been trained yet, or none is trained."), kind="card wide")
    how = (
        "Loss by optimizer step. A curve that still falls at its end asks for more steps; one that rises has diverged."
    )
    return card(title, tag("div", *charts, class_="thirds"), how=how, kind="card wide" if len(charts) > 1 else "card")


def _chart(run: RunData, name: str) -> Markup | None:
    rows = run.trainings.get(name, [])
    found = [(float(row["step"]), value) for row in rows if (value := number(row, "loss")) is not None]
    if not found:
        return None
    title, tone = KNOWN.get(name, (name, "third"))
    chart = line_chart([Series("", tone, found)], f"Loss: {title}", "step", compact, y_low=0.0, size=SMALL)
    return tag("div", tag("h3", title), chart)


# -- learners from outside -----------------------------------------------------------------------------------------

TONES = ("strong", "second", "third")


def others_section(run: RunData) -> Markup | None:
    """What other algorithms made of the same base policy with the same real episodes; None where there are none."""
    if not run.others:
        return None
    rows = [_learner("Base policy", mapping(run.summary, "result", "base_success"), None, None)]
    base = number(mapping(run.summary, "result", "base_success"), "value")
    own = [spent for one in run.others.values() if (spent := number(one, "own_frames")) is not None]
    final = mapping(run.summary, "result", "final_success")
    rows.append(_learner(recipe_name(run.summary).policy, final, own[0] if own else None, base))
    series = []
    for (label, one), tone in zip(run.others.items(), TONES * len(run.others), strict=False):
        rows.append(_learner(label, mapping(one, "success"), number(one, "frames"), base))
        if line := _learning(one):
            series.append(Series(label, tone, line))
    chart = None
    if series:
        chart = line_chart(
            series, "Imagined success", "frames, thousands", lambda v: percent(v, 0), y_low=0.0, y_high=1.0
        )
    return card(
        "Other learners in the same world",
        table(["", "frames", "real success", "95% interval", "gain"], rows, numeric=(1, 2, 3, 4)),
        chart,
        how="All begin with the same base policy and spend the same real episodes; frames are those that were imagined for "
        "training, or simulated where the name says perfect. The same held-out starts with the same random numbers. Curve: "
        "success of the latest training episodes.",
    )


def _learner(name: str, rate: dict, frames: float | None, base: float | None) -> list[object]:
    value, low, high = (number(rate, key) for key in ("value", "low", "high"))
    gain = None if value is None or base is None else 100 * (value - base)
    return [
        name,
        "" if frames is None else datum(frames, f"{frames:,.0f}"),
        "" if value is None else datum(value, percent(value), class_="big"),
        "" if low is None or high is None else f"{100 * low:.1f} – {percent(high)}",
        "" if gain is None else datum(gain, points(gain)),
    ]


def _learning(one: dict) -> list[tuple[float, float]]:
    """(thousands of frames, success) on the way."""
    curve, chunks, frames = one.get("curve"), number(one, "chunks"), number(one, "frames")
    if not isinstance(curve, list) or not chunks or not frames:
        return []
    pairs = [pair for pair in curve if isinstance(pair, list) and len(pair) == 2]
    read = [(number({"": at}, ""), number({"": value}, "")) for at, value in pairs]
    return [(at * frames / chunks / 1000, value) for at, value in read if at is not None and value is not None]
