"""The report of a run: one self-contained HTML file that opens from disk."""

from __future__ import annotations

from pathlib import Path

from wmpo_ray.files import atomic_write
from wmpo_ray.report.markup import Markup, join, tag
from wmpo_ray.report.model_sections import gate_section, reward_section, world_model_section
from wmpo_ray.report.optimize_sections import (
    failures_section,
    health_section,
    imagination_section,
    queue_section,
    update_time_section,
)
from wmpo_ray.report.result_sections import header, provenance_section, result_section, time_section
from wmpo_ray.report.run_data import RunData, read_run
from wmpo_ray.report.style import STYLE
from wmpo_ray.report.video_sections import VideoBudget, featured_section, pairs_section, policy_section

# The browser itself enforces that the page loads nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(run_folder: Path) -> Path:
    """Write `report/index.html` of a run folder and return its path; a section without input says what is missing.

    Raises UserError if `run_folder` is no folder or the disk is full; an old report stays.
    """
    page = render(read_run(Path(run_folder)))
    path = Path(run_folder) / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, page)
    return path


def render(run: RunData) -> str:
    """The whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{run.name} · WMPO report"),
        tag("style", Markup(STYLE)),
    )
    body = tag("body", tag("main", header(run), _sections(run)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _sections(run: RunData) -> Markup:
    budget = VideoBudget()
    groups = [
        ("", [result_section(run), featured_section(run, budget), imagination_section(run), time_section(run)]),
        (
            "Can imagination be trusted?",
            [reward_section(run), world_model_section(run), gate_section(run), failures_section(run)],
        ),
        ("How optimisation went", [queue_section(run), update_time_section(run), health_section(run)]),
        (
            "Videos",
            [
                pairs_section(run, budget),
                policy_section(run.base, "Base policy", "base.npz", "base", budget),
                policy_section(run.final, "WMPO policy", "final.npz", "final", budget),
            ],
        ),
        ("", [provenance_section(run)]),
    ]
    parts = []
    for title, cards in groups:
        parts += [tag("h2", title, class_="group")] if title else []
        parts.append(tag("div", *cards, class_="grid"))
    return join(parts)
