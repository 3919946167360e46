"""The report of a run: one self-contained HTML file that opens from disk."""

from __future__ import annotations

from pathlib import Path

from wmpo_ray.core.files import atomic_write
from wmpo_ray.report.markup import Markup, join
from wmpo_ray.report.model_sections import gate_section, reward_section, world_model_section
from wmpo_ray.report.optimize_sections import (
    failures_section,
    health_section,
    queue_section,
    success_section,
    update_time_section,
)
from wmpo_ray.report.page import document, grid
from wmpo_ray.report.recipe_view import IMAGINES, has_queue, has_stage, recipe_name
from wmpo_ray.report.result_sections import header, provenance_section, result_section, time_section
from wmpo_ray.report.run_data import RunData, read_run
from wmpo_ray.report.timeline_section import timeline_section
from wmpo_ray.report.trace_data import Trace, newest_trace
from wmpo_ray.report.training_section import training_section
from wmpo_ray.report.trust_section import trust_section
from wmpo_ray.report.video_sections import VideoBudget, featured_section, pairs_section, policy_section


def write_report(run_folder: Path) -> Path:
    """Write `report/index.html` of a run folder and return its path; a section without input says what is missing.

    Raises UserError if `run_folder` is no folder or the disk is full; an old report stays.
    """
    page = render(read_run(Path(run_folder)), newest_trace(Path(run_folder)))
    path = Path(run_folder) / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, page)
    return path


def render(run: RunData, trace: Trace | None = None) -> str:
    """The whole page; `trace` is the update whose timeline it shows."""
    return document(f"{run.name} · {recipe_name(run.summary).short} report", header(run), _sections(run, trace))


def _sections(run: RunData, trace: Trace | None) -> Markup:
    """The cards in groups; what the recipe does not have is left out."""
    imagines, budget = has_stage(run, IMAGINES), VideoBudget()
    featured = [featured_section(run, budget)] if imagines else []
    pairs = [pairs_section(run, budget)] if imagines else []
    queue = [queue_section(run)] if has_queue(run) else []
    update_time = [update_time_section(run)]
    beside_time, beside_queue = ([], update_time) if queue else (update_time, [])  # cards in pairs leave no gap
    groups = [
        ("", [result_section(run), *featured, success_section(run), time_section(run), *beside_time]),
        (
            "Can imagination be trusted?" if imagines else "What the policy learned",
            [*_model_sections(run), failures_section(run), training_section(run)],
        ),
        (
            "How optimisation went",
            [*queue, *beside_queue, timeline_section(trace), health_section(run)],
        ),
        (
            "Videos",
            [
                *pairs,
                policy_section(run.base, "Base policy", "base.npz", "base", budget),
                policy_section(run.final, recipe_name(run.summary).policy, "final.npz", "final", budget),
            ],
        ),
        ("", [provenance_section(run)]),
    ]
    return join([grid(title, *cards) for title, cards in groups])


def _model_sections(run: RunData) -> list[Markup]:
    sections = {"reward-model": reward_section, "world-model": world_model_section, "gate": gate_section}
    found = [section(run) for stage, section in sections.items() if has_stage(run, stage)]
    trust = trust_section(run) if has_stage(run, IMAGINES) else None
    return found if trust is None else [*found, trust]
