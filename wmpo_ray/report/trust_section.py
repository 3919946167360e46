"""The trust card: whether imagination told the truth about this run's policies."""

from __future__ import annotations

from functools import partial

from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.report.card import card
from wmpo_ray.report.charts import Series, line_chart
from wmpo_ray.report.formats import percent
from wmpo_ray.report.markup import Markup, datum, table
from wmpo_ray.report.run_data import RunData, mapping, number, numbers

POINTS = "{:+.1f} points".format
MAX_BINS = 100


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


def reliability_section(run: RunData) -> Markup | None:
    """Whether probabilities and progress of the reward model mean what they say; None where neither was measured."""
    reward = run.stage_metrics("reward-model")
    progress = _progress_chart(reward)
    charts = [chart for chart in (_reliability_chart(reward), progress) if chart is not None]
    rows = [row for row in _of_reward_model(reward) if row is not None]
    if not charts:
        return None
    return card(
        "Do the reward model's numbers mean what they say?",
        table(["", "measured", "ideal"], rows, numeric=(1, 2)) if rows else None,
        *charts,
        how="Held-out real episodes by the highest probability that the reward model gives them: how many of each bin "
        "succeeded, with the share of all episodes as bars. On the diagonal a probability means what it says; the "
        "calibration error is the mean distance from it."
        + ("" if progress is None else " Progress should grow with time, and stay behind in failures."),
    )


def _reliability_chart(reward: dict) -> Markup | None:
    """The share of successes among episodes of about the same probability; None where it was not measured."""
    rows = reward.get("reliability_curve")
    bins = [_bin(row) for row in rows[:MAX_BINS]] if isinstance(rows, list) else []
    if not bins or not all(bins):
        return None
    points, intervals, counts = [], [], []
    for mean, rate, num in (found for found in bins if found):
        points.append((mean, rate))
        intervals.append(wilson_interval(round(rate * num), num))
        counts.append((mean, num))
    total = sum(num for _, num in counts)
    return line_chart(
        [
            Series("ideal", "third", [(0.0, 0.0), (1.0, 1.0)], stroke="dotted"),
            Series("measured", "real", points, intervals),
        ],
        "Outcomes of held-out episodes by the probability that the reward model gave them",
        "probability of success, as the reward model says",
        partial(percent, digits=0),
        y_low=0.0,
        y_high=1.0,
        x_format=partial(percent, digits=0),
        bars=[(mean, num / total) for mean, num in counts],
    )


def _progress_chart(reward: dict) -> Markup | None:
    """How far episodes have come, by their share; None without a progress head."""
    progress = mapping(reward, "progress")
    series = []
    for outcome, tone, stroke in (("success", "real", "solid"), ("failure", "third", "dashed")):
        values = numbers(progress, outcome)[:MAX_BINS]
        if len(values) > 1:
            points = [(i / (len(values) - 1), value) for i, value in enumerate(values)]
            series.append(Series(outcome, tone, points, stroke=stroke))
    if not series:
        return None
    show = partial(percent, digits=0)
    title, x_label = "Progress of held-out episodes, by outcome", "share of the episode: its progress, as the head says"
    return line_chart(series, title, x_label, show, y_low=0.0, y_high=1.0, x_format=show)


def _bin(row: object) -> tuple[float, float, int] | None:
    """(mean probability, share that succeeded, number of episodes) of a bin, as a run's own file should hold it."""
    found = numbers({"row": row}, "row")
    if len(found) != 3 or not all(0 <= share <= 1 for share in found[:2]) or not 1 <= found[2] <= 1e12:
        return None
    return found[0], found[1], int(found[2])


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
    ]


def _of_reward_model(reward: dict) -> list[list[object] | None]:
    return [
        _row("calibration error", number(reward, "calibration_error"), "{:.3f}", "0"),
        _row("order of progress", number(reward, "progress", "order_correlation"), "{:.3f}", "1"),
        _share("failures called a success", number(reward, "false_positive_rate"), "0%"),
        _share("that share, at most (95%)", number(reward, "false_positive_bound"), "0%"),
    ]
