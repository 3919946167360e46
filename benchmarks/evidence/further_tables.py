"""Tables beside the main comparison: rounds, disruptions, self-correction and costs."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.evidence.cells import DISRUPTIONS
from benchmarks.evidence.costs import GAINS, Cost, cost_of
from benchmarks.evidence.page_parts import interval_text, picture_of, seeds_text
from benchmarks.evidence.pictures import draw_lines
from benchmarks.evidence.plan import BUDGET, LIFELONG, METHODS, ROUNDS, SHORT
from benchmarks.evidence.results import Result, points, result_of
from wmpo_ray.statistics.paired import bootstrap_difference


def lifelong() -> str:
    """Success by round (Fig. 6)."""
    found = [result for name in LIFELONG if (result := result_of(name))]
    if not found:
        return ""
    heads = [f"after round {round}" for round in range(1, ROUNDS + 1)]
    lines = [
        "## Rounds",
        "",
        (
            f"Every round spends {BUDGET} more real episodes: of the newest policy, or demonstrations for cloning. A round of "
            f"WMPO has {SHORT} updates."
        ),
        "",
        f"| method | seeds | base | {' | '.join(heads)} | last round over first |",
        "|---" * (len(heads) + 4) + "|",
    ]
    curves = {}
    for result in found:
        success = result.rounds()
        means = success.mean((0, 2)).tolist()
        rise = points(bootstrap_difference(success[:, 0], success[:, -1]))
        shown = " | ".join(f"{mean:.1%}" for mean in means)
        lines.append(
            f"| {result.title} | {seeds_text(result)} | {result.success('base'):.1%} | {shown} | {interval_text(rise)} |"
        )
        curves[result.title] = list(enumerate([result.success("base"), *means]))
    chart = draw_lines(curves, "Real success by round", "round")
    return "\n".join([*lines, "", picture_of("rounds", chart, "Real success by round")])


def disruptions() -> str:
    """The same policies where the scene is not the one they were trained in (Table 2)."""
    found = [
        result for name in METHODS if (result := result_of(name)) and result.disrupted("position", "final") is not None
    ]
    if not found:
        return ""
    lines = [
        "## Under disruption",
        "",
        "Policies of P = 128 in a disrupted simulator, 512 starts, sampled; the last columns are gains over the base policy.",
        "",
        f"| method | seeds | none | {' | '.join(DISRUPTIONS)} | {' | '.join(f'gain, {name}' for name in DISRUPTIONS)} |",
        "|---" * (3 + 2 * len(DISRUPTIONS)) + "|",
        _disrupted_row("base policy", found[0], "base"),
    ]
    return "\n".join([*lines, *(_disrupted_row(result.title, result, "final") for result in found)])


def _disrupted_row(title: str, result: Result, policy: str) -> str:
    shares, gains = [result.success(policy)], []
    for name in DISRUPTIONS:
        before, after = result.disrupted(name, "base"), result.disrupted(name, policy)
        assert before is not None and after is not None
        shares.append(float(after.mean()))
        gains.append("" if policy == "base" else interval_text(points(bootstrap_difference(before, after))))
    return (
        f"| {title} | {seeds_text(result)} | {' | '.join(f'{share:.1%}' for share in shares)} | {' | '.join(gains)} |"
    )


def recoveries() -> str:
    """Whether a policy succeeds after a failed attempt (Fig. 3)."""
    found = [result for name in METHODS if (result := result_of(name))]
    if not found:
        return ""
    lines = [
        "## Self-correction",
        "",
        (
            "The simulator knows when an attempt fails: the gripper closes beside the block, the block jams at the wall, is let "
            "go on the way, or is in the wrong pocket. Recovered: success in the same episode after that."
        ),
        "",
        "| policy | seeds | episodes with a failed attempt | recovered | successes without a failed attempt |",
        "|---|---|---|---|---|",
        _recovery_row("base policy", found[0], "base"),
    ]
    return "\n".join([*lines, *(_recovery_row(result.title, result, "final") for result in found)])


def _recovery_row(title: str, result: Result, policy: str) -> str:
    recovery = result.recovery(policy)
    clean = result.success(policy) - recovery.recovered / recovery.num
    return f"| {title} | {seeds_text(result)} | {recovery.failed / recovery.num:.1%} | {recovery.share:.1%} | {clean:.1%} |"


def costs() -> str:
    """What it takes to reach a gain."""
    found = [result for name in METHODS if (result := result_of(name))]
    if not found:
        return ""
    lines = [
        "## Cost of a gain",
        "",
        (
            "Processor time (one core of the machine above) until real success on the way is so many points above the base "
            "policy's, with the demonstrations, the base policy and whatever models the method shares with others; and the real "
            "episodes of the policy that were used until then."
        ),
        "",
        f"| method | {' | '.join(f'+{gain} points: seeds, core s, real episodes' for gain in GAINS)} |",
        "|---" * (1 + len(GAINS)) + "|",
    ]
    for result in found:
        shown = [_cost_text(cost_of(result, gain)) for gain in GAINS]
        lines.append(f"| {result.title} | {' | '.join(shown)} |")
    ours = result_of("wmpo")
    return "\n".join([*lines, "", _stage_times(ours)] if ours else lines)


def _cost_text(cost: Cost) -> str:
    if not cost.reached:
        return f"0 of {cost.seeds}"
    return f"{cost.reached} of {cost.seeds}, {cost.core_seconds:.0f} s, {cost.real_episodes:.0f}"


def _stage_times(ours: Result) -> str:
    names = list(next(iter(ours.cells.values()))["stage_seconds"])
    means = {
        name: np.mean([cell["stage_seconds"].get(name, math.nan) for cell in ours.cells.values()]) for name in names
    }
    shown = ", ".join(f"{name} {mean:.0f}" for name, mean in means.items())
    return f"WMPO by stage, seconds on one core beside other work: {shown}."
