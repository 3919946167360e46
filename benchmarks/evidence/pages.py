"""The page: tables and plots of what has been run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.evidence import page_parts as parts
from benchmarks.evidence.further_tables import costs, disruptions, lifelong, recoveries
from benchmarks.evidence.page_parts import interval_text, picture_of, seeds_text
from benchmarks.evidence.pictures import Row, draw_lines, draw_rows, draw_trust
from benchmarks.evidence.plan import ABLATIONS, ALL, BUDGET, BUDGETS, METHODS, REFERENCE, SHORT, UPDATES, VERIFICATION
from benchmarks.evidence.results import (
    FAMILIES,
    Result,
    best_of,
    imagined_real_gaps,
    lead,
    result_of,
    trust_pairs,
    trust_r,
)
from wmpo_ray.core.files import atomic_write


def write_page(methods: Sequence[Result], others: Sequence[Result]) -> Path:
    """Write `evidence.md` and its plots; returns the page's path."""
    found = [
        _intro([*methods, *others]),
        _at_one_budget(),
        _by_budget(methods),
        _against("Verification", "verification", VERIFICATION, "wmpo", UPDATES),
        lifelong(),
        _trust(),
        _against("Ablations", "ablations", ABLATIONS, REFERENCE, SHORT),
        disruptions(),
        recoveries(),
        costs(),
        _missing(),
    ]
    atomic_write(parts.PAGE, "\n\n".join(part for part in found if part) + "\n")
    return parts.PAGE


def _intro(results: Sequence[Result]) -> str:
    machines = sorted({machine for result in results for machine in result.machines})
    num = sum(len(result.cells) for result in results)
    return (
        "# The paper's comparisons on the embedded task\n\n"
        f"`make evidence` writes this page from {num} runs, each with a file of its own in [evidence/](evidence/); run it "
        f"again to go on with what is missing. Processors: {'; '.join(machines)}.\n\n"
        "Success is measured in the simulator on 512 held-out start states, the same for every method and seed; `sampled` "
        "at temperature 1, `greedy` with the most likely actions. Gains and leads are in points, with 95% intervals of a "
        "bootstrap over seeds and starts; p-values are of McNemar's exact test over all pairs of episodes. Every method "
        "begins with the same base policy of its seed and spends the same real budget P; of a baseline with two settings "
        "the better one by these very episodes counts, which favours the baseline."
    )


def _at_one_budget() -> str:
    found = [result for method in METHODS if (result := result_of(method))]
    if not found:
        return ""
    ours = result_of("wmpo")
    lines = [
        f"## Methods at P = {BUDGET}",
        "",
        "| method | seeds | base | sampled | greedy | gain | WMPO leads by | p | length of successes | core s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in sorted(found, key=lambda each: -each.success("final")):
        ahead = lead(ours, result) if ours and result.method != "wmpo" else None
        cells = [
            result.title,
            seeds_text(result),
            f"{result.success('base'):.1%}",
            f"**{result.success('final'):.1%}**",
            f"{result.success('final', 'greedy'):.1%}",
            interval_text(result.gain),
            interval_text(ahead.points) if ahead else "",
            f"{ahead.p_value:.2g}" if ahead else "",
            f"{result.length_ratio:.2f}",
            f"{result.core_seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rows = [Row(r.title, *r.gain, r.method == "wmpo") for r in sorted(found, key=lambda each: -each.gain.value)]
    lines += [
        "",
        picture_of("gains", draw_rows(rows, "Gain over the base policy", "points", 0.0), "Gain of each method"),
    ]
    return "\n".join(lines)


def _by_budget(methods: Sequence[Result]) -> str:
    budgets = [budget for budget in BUDGETS if any(result.budget == budget for result in methods)]
    if len(budgets) < 2:
        return ""
    lines = ["## Success by real budget P", "", f"| method | {' | '.join(f'P = {budget}' for budget in budgets)} |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    curves = {}
    for family, members in {"WMPO": ("wmpo",), **FAMILIES}.items():
        best = {budget: best_of(members, budget) for budget in budgets}
        shown = ["" if result is None else f"{result.success('final'):.1%}" for result in best.values()]
        lines.append(f"| {family} | {' | '.join(shown)} |")
        curves[family] = [(np.log2(budget), r.success("final")) for budget, r in best.items() if r is not None]
    chart = draw_lines(curves, "Success by real budget", "log2 of the real episodes")
    return "\n".join([*lines, "", picture_of("budgets", chart, "Success by real budget")])


def _against(title: str, name: str, members: Iterable[str], reference: str, updates: int) -> str:
    """Members against the one that they differ from, which was trained as long."""
    ours = result_of(reference)
    found = [result for member in members if member != reference and (result := result_of(member))]
    if ours is None or not found:
        return ""
    shown = ", ".join(f"seed {seed} {rate:.1%}" for seed, rate in zip(ours.seeds, ours.by_seed("final"), strict=True))
    lines = [
        f"## {title}",
        "",
        (
            f"WMPO after {updates} updates: {ours.success('final'):.1%} ({shown}), gain {interval_text(ours.gain)}. Each line "
            "differs from it in one thing, and is compared with it on the seeds that the line has."
        ),
        "",
        "| what differs | seeds | sampled | gain | against WMPO | p |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for result in found:
        ahead = lead(result, ours)
        against, p = (interval_text(ahead.points), f"{ahead.p_value:.2g}") if ahead else ("", "")
        lines.append(
            f"| {result.title} | {seeds_text(result)} | {result.success('final'):.1%} | {interval_text(result.gain)} | {against} "
            f"| {p} |"
        )
        if ahead:
            rows.append(Row(result.title, *ahead.points))
    chart = draw_rows(rows, "Difference to WMPO", "points against WMPO on the same seeds and starts", 0.0)
    return "\n".join([*lines, "", picture_of(name, chart, f"{title} against WMPO")])


def _trust() -> str:
    ours = result_of("wmpo")
    if ours is None or not (pairs := trust_pairs(ours)):
        return ""
    r = trust_r(ours)
    curves = {}
    for seed in ours.seeds:
        for name, place in (("imagined", 2), ("real", 3)):
            curves[f"{name}, seed {seed}"] = [(pair[1], pair[place]) for pair in pairs if pair[0] == seed]
    said = "" if r is None else f" Pearson r = {r:.3f}."
    gaps = ", ".join(f"{gap:+.1f}" for gap in imagined_real_gaps(ours))
    text = (
        f"{len(pairs)} versions of the policy, imagined on training starts and measured on 256 others.{said} Labels "
        f"right on 256 held-out replays: {ours.mean('gate', 'label_agreement'):.1%}; reward model F1 on held-out real "
        f"episodes {ours.mean('reward_model', 'f1'):.3f}. Imagined minus real success of the final policies on the same "
        f"256 held-out starts: {gaps or 'not measured'} points."
    )
    return "\n".join(
        [
            "## Does imagination tell the truth?",
            "",
            text,
            "",
            picture_of("trust", draw_trust(pairs, "Imagined against real success"), "Imagined against real success"),
            picture_of("curves", draw_lines(curves, "Imagined and real success", "update"), "Success by update"),
        ]
    )


def _missing() -> str:
    missing = [name for name in ALL if result_of(name) is None]
    return f"Not run at P = {BUDGET} yet: {', '.join(missing)}." if missing else ""
