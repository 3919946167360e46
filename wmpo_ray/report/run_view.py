"""A run in a notebook: verdict, result, curve and stages, as the report shows them."""

from __future__ import annotations

from pathlib import Path

from wmpo_ray.report.markup import Markup, tag
from wmpo_ray.report.optimize_sections import success_section
from wmpo_ray.report.page import document, grid
from wmpo_ray.report.recipe_view import newest_round, num_rounds, recipe_name
from wmpo_ray.report.result_sections import header, result_section, rounds_section, time_section
from wmpo_ray.report.run_data import RunData, mapping, read_run_metrics

HEIGHT_PIXELS = 620


def run_html(folder: Path) -> Markup:
    """A frame with a page of its own, so that neither its style nor the notebook's reaches the other."""
    run = read_run_metrics(folder)
    by_round = [rounds_section(run)] if num_rounds(run) > 1 else []
    cards = (result_section(run), *by_round, success_section(newest_round(run)), time_section(run))
    page = document(
        f"{run.name} · {recipe_name(run.summary).short} run",
        header(run),
        tag("p", progress(run), class_="lead"),
        grid("", *cards),
    )
    style = f"width:100%;height:{HEIGHT_PIXELS}px;border:0"
    return tag("div", tag("iframe", srcdoc=page, sandbox="", title=f"run {run.name}", style=style))


def progress(run: RunData) -> str:
    """Such as `6 of 8 stages are done; optimize is next.`"""
    stages, done = run.stages, mapping(run.summary, "stages")
    following = next((name for name in stages if name not in done), None)
    count = f"{sum(name in done for name in stages)} of {len(stages)} stages are done"
    return f"{count}; {following} is next." if following else f"{count}."
