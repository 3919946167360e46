"""The box around every section of the page."""

from __future__ import annotations

from wmpo_ray.report.markup import Markup, tag
from wmpo_ray.report.run_data import RunData, mapping


def card(title: str, *content: object, how: object = None, kind: str = "card") -> Markup:
    """A section with a title; `how` is the line below that says how to read it."""
    note = tag("p", how, class_="how") if how is not None else None
    return tag("section", tag("h2", title), *content, note, class_=kind)


def missing(what: str) -> Markup:
    """The one line of a section whose input is not there."""
    return tag("p", what, class_="missing")


def absent(run: RunData, what: str, stage: str) -> Markup:
    """The same for metrics of a stage: it has not finished, or it has and gave none."""
    if stage in mapping(run.summary, "stages"):
        return missing(f"No {what}: the stage {stage} gave none.")
    return missing(f"No {what} yet: the stage {stage} has not finished.")
