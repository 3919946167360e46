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
    agreement, num = numbers(gate, "agreement_by_step"), number(trust, "versions")
    versions = "the versions" if num is None else f"{num:.0f} versions"
    if not rows and not agreement:
        return None
    chart = None
    if agreement:
        series = [Series("agree", "strong", list(enumerate(agreement, start=1)))]
        chart = line_chart(series, "Agreement of outcomes by step", "step", lambda value: percent(value, 0), y_high=1.0)
    return card(
        "Does imagination tell the truth?",
        table(["", "measured", "ideal"], rows, numeric=(1, 2)),
        chart,
        how=f"Imagined against real success over {versions} of the policy; a wrong order of two costs the difference of "
        "their real success. Labels against reality: real actions replayed in imagination, imagined rollouts executed for "
        "real, starts with another episode's actions. Curve: the share of replays that has succeeded in both worlds by a "
        "step, or in neither; the safe horizon ends where that falls under the gate's bound for labels.",
    )


def _row(label: str, value: float | None, shown: str, ideal: str) -> list[object] | None:
    return None if value is None else [label, datum(value, shown.format(value)), ideal]


def _points(label: str, value: float | None, ideal: str) -> list[object] | None:
    return None if value is None else [label, datum(value, POINTS(100 * value)), ideal]


def _share(label: str, value: float | None, ideal: str) -> list[object] | None:
    return None if value is None else [label, datum(value, percent(value)), ideal]


def _of_policies(trust: dict) -> list[list[object] | None]:
    return [
        _row("correlation of success", number(trust, "pearson"), "{:.3f}", "1"),
        _row("rank correlation", number(trust, "spearman"), "{:.3f}", "1"),
        _points("cost of a wrong order", number(trust, "rank_violation"), "0"),
        _row("real over imagined gain", number(trust, "lift"), "{:.2f}", "1"),
        _points("imagined − real, at the end", number(trust, "gap"), "0"),
        _points("imagined − real, at its best", number(trust, "exploited"), "0"),
    ]


def _of_labels(trust: dict, gate: dict, reward: dict) -> list[list[object] | None]:
    horizon, steps = number(gate, "safe_horizon"), len(numbers(gate, "agreement_by_step"))
    return [
        _share("labels right, replays", number(gate, "label_agreement"), "100%"),
        _share("labels right, rollouts", number(trust, "closed_loop_agreement"), "100%"),
        _share("rewarded, but fails", number(trust, "closed_loop_false_positives"), "0%"),
        _share("missed, but succeeds", number(trust, "closed_loop_false_negatives"), "0%"),
        _share("labels right, other actions", number(gate, "counterfactual_agreement"), "100%"),
        _row("safe horizon, steps", horizon, "{:.0f}", str(steps) if steps else ""),
        _row("calibration error", number(reward, "calibration_error"), "{:.3f}", "0"),
    ]
