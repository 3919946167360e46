"""Sums the cells up: `evidence.json` with every figure, `evidence.md` with tables and plots."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.evidence import demo_time
from benchmarks.evidence.cells import DISRUPTIONS
from benchmarks.evidence.costs import GAINS, cost_of
from benchmarks.evidence.pages import write_page
from benchmarks.evidence.plan import ABLATIONS, BUDGETS, LIFELONG, METHODS, VERIFICATION
from benchmarks.evidence.results import (
    Result,
    best_baseline,
    imagined_real_gaps,
    iqm_of,
    lead,
    result_of,
    trust_r,
)
from benchmarks.results_file import write_results

NAME = "evidence"


def summarize() -> list[Path]:
    """The files written, from whatever cells there are; none if there are no cells."""
    found = [result for budget in BUDGETS for method in METHODS if (result := result_of(method, budget))]
    others = [result for name in (*VERIFICATION, *LIFELONG, *ABLATIONS) if (result := result_of(name))]
    if not found and not others:
        return []
    figures = {key: value for result in [*found, *others] for key, value in _figures(result).items()}
    ours, other = result_of("wmpo"), best_baseline()
    if ours is not None:
        figures |= _ours(ours)
        if other is not None:
            figures |= _lead(ours, other)
    if (rounds := result_of("wmpo-rounds")) is not None:
        means = rounds.rounds().mean((0, 2)).tolist()
        figures["lifelong_rounds"] = {
            "value": [rounds.success("base"), *means],
            "unit": "share, base and after each round",
        }
    figures |= demo_time.figures()
    written = write_results(NAME, figures, "python -m benchmarks.evidence")
    return [written, write_page(found, others)]


def _figures(result: Result) -> dict[str, dict[str, Any]]:
    key, gain = f"{result.method}/p{result.budget}", result.gain
    figures = {
        f"{key}/success": {
            "value": result.success("final"),
            "unit": "share",
            "seeds": result.by_seed("final"),
            "base": result.by_seed("base"),
        },
        f"{key}/success_greedy": {"value": result.success("final", "greedy"), "unit": "share"},
        f"{key}/gain": {"value": gain.value, "unit": "points", "interval": [gain.low, gain.high]},
        f"{key}/core_seconds": {"value": result.core_seconds, "unit": "s"},
    }
    for name in DISRUPTIONS:
        if (success := result.disrupted(name, "final")) is not None:
            figures[f"{key}/success_{name}"] = {"value": float(success.mean()), "unit": "share"}
    figures[f"{key}/iqm"] = {"value": (iqm := iqm_of(result)).value, "unit": "%", "interval": [iqm.low, iqm.high]}
    figures |= _costs(key, result)
    ratio = result.length_ratio
    return figures | ({f"{key}/length_ratio": {"value": ratio, "unit": "ratio"}} if math.isfinite(ratio) else {})


def _costs(key: str, result: Result) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    if math.isfinite(recovered := result.recovery("final").share):
        figures[f"{key}/recovered"] = {"value": recovered, "unit": "share of the episodes with a failed attempt"}
    for gain in GAINS:
        if (cost := cost_of(result, gain)).reached:
            about = f"{cost.reached} of {cost.seeds} seeds reach it"
            figures[f"{key}/core_seconds_to_{gain}"] = {"value": cost.core_seconds, "unit": "s", "note": about}
            figures[f"{key}/episodes_to_{gain}"] = {"value": cost.real_episodes, "unit": "episodes", "note": about}
    return figures


def _ours(ours: Result) -> dict[str, dict[str, Any]]:
    gain, r = ours.gain, trust_r(ours)
    figures: dict[str, dict[str, Any]] = {
        "gain_points": {"value": gain.value, "unit": "points", "interval": [gain.low, gain.high]},
        "gain_low": {"value": gain.low, "unit": "points"},
        "reward_f1": {"value": ours.mean("reward_model", "f1"), "unit": "F1"},
    }
    if gaps := imagined_real_gaps(ours):
        mean = sum(map(abs, gaps)) / len(gaps)
        figures["imagined_real_gap"] = {"value": mean, "unit": "points, mean of absolute values", "seeds": gaps}
    if r is not None:
        figures["trust_r"] = {"value": r, "unit": "Pearson r"}
    return {key: figure for key, figure in figures.items() if math.isfinite(figure["value"])}


def _lead(ours: Result, other: Result) -> dict[str, dict[str, Any]]:
    found = lead(ours, other)
    if found is None:
        return {}
    points = found.points
    return {
        "lead_over_best_baseline_points": {
            "value": points.value,
            "unit": "points",
            "interval": [points.low, points.high],
            "baseline": other.method,
        },
        "lead_p_value": {"value": found.p_value, "unit": "p, exact McNemar, two-sided"},
    }
