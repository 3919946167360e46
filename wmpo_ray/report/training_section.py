"""Losses of the supervised trainings: cloning, alignment, reward model."""

from __future__ import annotations

from wmpo_ray.report.card import card, missing
from wmpo_ray.report.charts import SMALL, Series, line_chart
from wmpo_ray.report.formats import compact
from wmpo_ray.report.markup import Markup, tag
from wmpo_ray.report.run_data import RunData, number

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
    points = [(float(row["step"]), value) for row in rows if (value := number(row, "loss")) is not None]
    if not points:
        return None
    title, tone = KNOWN.get(name, (name, "third"))
    chart = line_chart([Series("", tone, points)], f"Loss: {title}", "step", compact, y_low=0.0, size=SMALL)
    return tag("div", tag("h3", title), chart)
