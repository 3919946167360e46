"""The trust card: whether imagination told the truth about this run's policies."""

from __future__ import annotations

from wmpo_ray.report.card import card
from wmpo_ray.report.charts import Series, line_chart
from wmpo_ray.report.formats import percent
from wmpo_ray.report.markup import Markup, datum, table
from wmpo_ray.report.run_data import RunData, mapping, number, numbers

POINTS = "{:+.1f} points".format


def trust_section(run: RunData) -> Markup | None:
    """None for a run whose metrics say nothing of it: no evaluation on the way, or no imagination."""
    trust, gate = mapping(run.stage_metrics("evaluate"), "trust"), run.stage_metrics("gate")
    reward = run.stage_metrics("reward-model")
    rows = [row for row in (*_of_policies(trust), *_of_labels(trust, gate, reward)) if row is not None]
    agreement = numbers(gate, "agreement_by_step")
    if not rows and not agreement:
        return None
    chart = None
    if agreement:
        series = [Series("outcomes agree", "strong", list(enumerate(agreement, start=1)))]
        chart = line_chart(series, "Agreement of outcomes by step", "step", lambda value: percent(value, 0), y_high=1.0)
    return card(
        "Does imagination tell the truth?",
        table(["", "measured", "ideal"], rows, numeric=(1, 2)),
        chart,
        how="Imagined against real success over the versions of the policy, and labels against the execution of the same "
        "actions. The curve: of held-out replays, the share that has succeeded in both worlds by a step, or in neither.",
    )


def _row(label: str, value: float | None, shown: str, ideal: str) -> list[object] | None:
    return None if value is None else [label, datum(value, shown.format(value)), ideal]


def _points(label: str, value: float | None, ideal: str) -> list[object] | None:
    return None if value is None else [label, datum(value, POINTS(100 * value)), ideal]


def _share(label: str, value: float | None, ideal: str) -> list[object] | None:
    return None if value is None else [label, datum(value, percent(value)), ideal]


def _of_policies(trust: dict) -> list[list[object] | None]:
    num = number(trust, "versions")
    of = "" if num is None else f", {num:.0f} versions"
    return [
        _row(f"correlation of imagined and real success{of}", number(trust, "pearson"), "{:.3f}", "1"),
        _row("rank correlation", number(trust, "spearman"), "{:.3f}", "1"),
        _points("mean maximum rank violation", number(trust, "rank_violation"), "0"),
        _row("real gain over imagined gain", number(trust, "lift"), "{:.2f}", "1"),
        _points("imagined minus real success at the end", number(trust, "gap"), "0"),
        _points("the same where imagined success was highest", number(trust, "exploited"), "0"),
    ]


def _of_labels(trust: dict, gate: dict, reward: dict) -> list[list[object] | None]:
    horizon, steps = number(gate, "safe_horizon"), len(numbers(gate, "agreement_by_step"))
    return [
        _share("labels right, real actions replayed", number(gate, "label_agreement"), "100%"),
        _share("labels right, imagined actions executed", number(trust, "closed_loop_agreement"), "100%"),
        _share("rewarded there, though it fails", number(trust, "closed_loop_false_positives"), "0%"),
        _share("not rewarded there, though it succeeds", number(trust, "closed_loop_false_negatives"), "0%"),
        _share("labels right for another episode's actions", number(gate, "counterfactual_agreement"), "100%"),
        _row("steps before outcomes part (safe horizon)", horizon, "{:.0f}", str(steps) if steps else ""),
        _row("calibration error of the reward model", number(reward, "calibration_error"), "{:.3f}", "0"),
    ]
