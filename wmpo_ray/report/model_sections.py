"""How good the learned judge and the learned world are: reward model, world model, gate."""

from __future__ import annotations

from wmpo_ray.report.card import absent, card, missing
from wmpo_ray.report.charts import Series, line_chart, meter
from wmpo_ray.report.formats import percent
from wmpo_ray.report.markup import Markup, datum, join, table, tag
from wmpo_ray.report.run_data import RunData, mapping, number, numbers


def reward_section(run: RunData) -> Markup:
    """F1 at the chosen threshold, and the curve that it was chosen from."""
    metrics = run.stage_metrics("reward-model")
    f1, threshold = number(metrics, "f1"), number(metrics, "threshold")
    rows = metrics.get("threshold_curve")
    rows = [row for row in rows if number(row, "threshold") is not None] if isinstance(rows, list) else []
    rows.sort(key=lambda row: row["threshold"])
    series = []
    for key, label, tone, stroke in (
        ("f1", "F1", "strong", "solid"),
        ("precision", "precision", "second", "dashed"),
        ("recall", "recall", "third", "dotted"),
    ):
        points = [(row["threshold"], value) for row in rows if (value := number(row, key)) is not None]
        series += [Series(label, tone, points, stroke=stroke)] if points else []
    if f1 is None and not series:
        return card("Reward model", absent(run, "metrics of the judge", "reward-model"))
    at = f" at threshold {threshold:.2f}" if threshold is not None else ""
    lead = tag("p", "F1 ", datum(f1, f"{f1:.3f}", class_="big"), at, class_="lead") if f1 is not None else None
    rule = (threshold, "chosen") if threshold is not None else None
    chart = missing("No threshold curve in summary.json.")
    if series:
        title, two_digits = "F1, precision and recall", "{:.2f}".format
        chart = line_chart(series, title, "threshold", two_digits, y_high=1.0, x_format="{:g}".format, rule=rule)
    return card(
        "Reward model on held-out real trajectories",
        lead,
        chart,
        how="A video counts as a success when the judge's probability reaches the threshold. A wide, flat top of F1 means "
        "the choice hardly matters; low precision means rewards for failures.",
    )


def world_model_section(run: RunData) -> Markup:
    """PSNR for each predicted frame, before and after alignment on the policy's own behaviour."""
    psnr = mapping(run.stage_metrics("world-model"), "psnr_per_frame_db")
    series = [
        Series(label, tone, list(enumerate(values, start=1)), stroke=stroke)
        for key, label, tone, stroke in (
            ("after", "aligned", "imagined", "solid"),
            ("before", "before", "third", "dashed"),
        )
        if (values := numbers(psnr, key))
    ]
    title = "World-model error per predicted frame"
    if not series:
        return card(title, absent(run, "error per frame", "world-model"))
    return card(
        title,
        line_chart(series, title, "predicted frame", "{:.1f}".format),
        how="Similarity of imagined to real frames (PSNR in dB, higher is better) on held-out trajectories. It falls with the "
        "horizon because each chunk builds on imagined frames; alignment should lift the whole line.",
    )


def gate_section(run: RunData) -> Markup:
    """What the imagined world had to reach before optimisation could start."""
    metrics = run.stage_metrics("gate")
    rows = [row for row in _gate_rows(metrics) if row is not None]
    if not rows:
        return card("The gate", absent(run, "replays", "gate"))
    passed = metrics.get("passed")
    state = join([_mark(passed), " passed" if passed else " not passed"]) if isinstance(passed, bool) else None
    num, wrong = number(metrics, "num"), (number(metrics, "false_positives"), number(metrics, "false_negatives"))
    replays = [f"{num:.0f} replays"] if num is not None else []
    errors = [
        f"{value:.0f} false {name}" for value, name in zip(wrong, ("positives", "negatives")) if value is not None
    ]
    return card(
        "The gate: real actions replayed in imagination",
        tag("p", join([state, *replays, *errors], " · "), class_="lead"),
        table(["", "metric", "bound", "", ""], rows, numeric=(1, 2)),
        how="The same actions in both worlds: how often the judge's label in imagination equals the real outcome. "
        "False positives are rewards for actions that really fail. The tick in each bar is the bound.",
    )


def _gate_rows(metrics: dict) -> list[list[object] | None]:
    bounds = mapping(metrics, "bounds")
    at_least = (
        ("label_agreement", "success labels agree", "min_label_agreement"),
        ("f1", "F1 of the labels", "min_f1"),
        ("grasp_agreement", "grasps agree", "min_event_agreement"),
        ("placement_agreement", "placements agree", "min_event_agreement"),
    )
    rows: list[list[object] | None] = []
    for key, label, bound in at_least:
        rows.append(_gate_row(label, number(metrics, key), number(bounds, bound), at_most=False, as_share=key != "f1"))
    imagined, real = number(metrics, "imagined_success"), number(metrics, "real_success")
    for label, value, tone in (("success, imagined", imagined, "imagined"), ("success, real", real, "real")):
        if value is not None:
            rows.append([label, datum(value, percent(value)), "", "", meter(value, tone)])
    if imagined is not None and real is not None:
        rows.append(_gate_row("gap of the two", abs(imagined - real), number(bounds, "max_success_gap"), at_most=True))
    return rows


def _gate_row(
    label: str, value: float | None, bound: float | None, at_most: bool, as_share: bool = True
) -> list[object] | None:
    if value is None:
        return None

    def show(one: float) -> str:
        return percent(one) if as_share else f"{one:.3f}"

    limit = "" if bound is None else datum(bound, f"{'≤' if at_most else '≥'} {show(bound)}")
    mark = "" if bound is None else _mark(value <= bound if at_most else value >= bound)
    return [label, datum(value, show(value)), limit, mark, meter(value, "strong", bound)]


def _mark(good: object) -> Markup:
    return tag("span", "✓" if good else "✗", class_="good" if good else "bad")
