"""The report of a run: one self-contained HTML file that opens from disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from wmpo_ray.core.files import atomic_write
from wmpo_ray.report.markup import Markup, join, tag
from wmpo_ray.report.model_sections import fidelity_section, gate_section, reward_section, world_model_section
from wmpo_ray.report.optimize_sections import (
    curves_by_round_section,
    failures_section,
    health_section,
    queue_section,
    success_section,
    update_time_section,
)
from wmpo_ray.report.page import document, grid
from wmpo_ray.report.recipe_view import IMAGINES, has_queue, has_stage, newest_round, recipe_name, rounds_of
from wmpo_ray.report.result_sections import header, provenance_section, result_section, rounds_section, time_section
from wmpo_ray.report.run_data import RunData, read_run
from wmpo_ray.report.timeline_section import timeline_section
from wmpo_ray.report.trace_data import Trace, newest_trace
from wmpo_ray.report.training_section import others_section, training_section
from wmpo_ray.report.trust_section import reliability_section, trust_section
from wmpo_ray.report.video_sections import (
    VideoBudget,
    disruption_section,
    featured_section,
    pairs_section,
    policy_section,
)
from wmpo_ray.runs.round_folders import round_folder


def write_report(run_folder: Path) -> Path:
    """Write `report/index.html` of a run folder and return its path; a section without input says what is missing.

    Raises UserError if `run_folder` is no folder or the disk is full; an old report stays.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    traces = {number: newest_trace(round_folder(folder, number)) for number in range(1, 2 + len(run.later))}
    page = render(run, traces)
    path = folder / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, page)
    return path


def render(run: RunData, traces: Mapping[int, Trace | None] = MappingProxyType({})) -> str:
    """The whole page; `traces`: the update of each round whose timeline it shows."""
    return document(f"{run.name} · {recipe_name(run.summary).short} report", header(run), _sections(run, traces))


def _sections(run: RunData, traces: Mapping[int, Trace | None]) -> Markup:
    """The cards in groups; those of each round in a part of its own where there are several, the newest one open."""
    rounds, budget = rounds_of(run), VideoBudget()
    # Backwards, so that the newest round has its videos where the page has not room for all.
    parts = [_round(one, traces.get(one.round), budget, is_only=len(rounds) == 1) for one in reversed(rounds)]
    if len(rounds) == 1:
        return join([*parts, grid("", provenance_section(run))])
    top = grid("", result_section(run), rounds_section(run), curves_by_round_section(rounds), time_section(run))
    newest = newest_round(run).round
    folded = [
        tag(
            "details",
            tag("summary", tag("h2", f"Round {one.round}")),
            part,
            class_="round",
            open="" if one.round == newest else None,
        )
        for one, part in zip(rounds, reversed(parts), strict=True)
    ]
    return join([top, *folded, grid("", provenance_section(run))])


def _round(run: RunData, trace: Trace | None, budget: VideoBudget, is_only: bool) -> Markup:
    """The cards of a round in groups; what the recipe does not have is left out."""
    imagines = has_stage(run, IMAGINES)
    featured = [featured_section(run, budget)] if imagines else []
    pairs = [pairs_section(run, budget)] if imagines else []
    queue = [queue_section(run)] if has_queue(run) else []
    update_time = [update_time_section(run)]
    beside_time, beside_queue = ([], update_time) if queue else (update_time, [])  # cards in pairs leave no gap
    base = [policy_section(run.base, "Base policy", "base.npz", "base", budget)] if run.round == 1 else []
    times = [time_section(run)] if is_only else []
    disrupted, others = disruption_section(run, budget), others_section(run)
    groups = [
        (
            "",
            [result_section(run), *featured, success_section(run), *times, *beside_time, *([others] if others else [])],
        ),
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
                *base,
                policy_section(run.final, recipe_name(run.summary).policy, "final.npz", "final", budget),
                *([disrupted] if disrupted else []),
            ],
        ),
    ]
    return join([grid(title, *cards) for title, cards in groups])


def _model_sections(run: RunData) -> list[Markup]:
    sections = {"reward-model": reward_section, "world-model": world_model_section, "gate": gate_section}
    found = [section(run) for stage, section in sections.items() if has_stage(run, stage)]
    more = [trust_section(run), reliability_section(run), fidelity_section(run)] if has_stage(run, IMAGINES) else []
    return [*found, *(one for one in more if one is not None)]
