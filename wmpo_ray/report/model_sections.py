"""How good the learned judge and the learned world are: reward model, world model, gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wmpo_ray.fidelity.metrics import CEILING, IMAGINED, SOURCES, STILL
from wmpo_ray.report.card import absent, card, missing
from wmpo_ray.report.charts import SMALL, Series, line_chart, meter
from wmpo_ray.report.formats import compact, percent
from wmpo_ray.report.markup import Markup, datum, join, table, tag
from wmpo_ray.report.run_data import RunData, mapping, number, numbers

TONES = {IMAGINED: ("imagined", "solid"), STILL: ("third", "dashed"), CEILING: ("real", "dotted")}
NAMED = replace(SMALL, right=96.0)  # with room for "imagined" in a wide font
NEARLY_EQUAL_DB = 60.0  # frames that are equal stand at 61: a line up there would press the others together


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
    if tasks := mapping(metrics, "tasks"):
        kept = len(tasks) - len(mapping(metrics, "missed") or mapping(metrics, "left_out"))
        state = join([state, f"{kept} of {len(tasks)} tasks keep the bounds"], " · ")
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
        ("marked_agreement", "marks agree", "min_event_agreement"),
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
    wrong, num = number(metrics, "false_positives"), number(metrics, "num")
    if wrong is not None and num and (most := number(bounds, "max_false_positives")) is not None and most < 1:
        rows.append(_gate_row("false positives", wrong / num, most, at_most=True))
    steps, least = number(metrics, "safe_horizon"), number(bounds, "min_safe_horizon")
    if steps is not None and least:
        rows.append(["safe horizon, steps", datum(steps, f"{steps:.0f}"), f"≥ {least:.0f}", _mark(steps >= least), ""])
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


def fidelity_section(run: RunData) -> Markup | None:
    """What `wmpo fidelity` measured, over the steps of an episode; None where it did not."""
    content = run.fidelity
    metrics = {name: metric for name, metric in mapping(content, "metrics").items() if isinstance(metric, dict)}
    if not metrics:
        return None
    charts = [chart for name, metric in metrics.items() if (chart := _fidelity_chart(name, metric)) is not None]
    num, outdated = number(content, "num_episodes"), _is_outdated(run)
    lead = None if num is None else tag("p", f"Real actions of {num:.0f} held-out episodes, replayed.", class_="lead")
    late = "Of an earlier world model or other episodes: measure it again with `wmpo fidelity`."
    return card(
        "How true are the imagined videos?",
        lead,
        tag("p", late, class_="bad") if outdated else None,
        tag("div", *charts, class_="thirds"),
        *_metric_tables(metrics),
        *_failure_tables(mapping(content, "failures")),
        *[missing(text) for text in mapping(content, "missing").values() if isinstance(text, str)],
        how="Still: the first frame repeated, so what needs no world model. Ceiling: the real frames, passed through the "
        "codec of the world model and measured in the same way. 95% intervals over episodes. The bound of drift lies "
        "halfway from the ceiling to the still picture (PSNR: at half its squared error). Action-following error: distance of what the actions move from where it really was.",
        kind="card wide",
    )


def _is_outdated(run: RunData) -> bool:
    """Whether a result that was measured has been replaced since."""
    keys = mapping(run.fidelity, "made_from")
    now = {stage: mapping(run.summary, "stages", stage, "made_from").get("key", "") for stage in keys}
    return any(now[stage] != keys[stage] for stage in keys)


def _fidelity_title(name: str, metric: dict) -> str:
    title, unit = metric.get("title"), metric.get("unit")
    title = title if isinstance(title, str) else name
    return f"{title} ({unit})" if isinstance(unit, str) and unit else title


def _fidelity_chart(name: str, metric: dict) -> Markup | None:
    series = []
    for source, (tone, stroke) in TONES.items():
        curve = mapping(metric, "of", source)
        steps = [_numbers_at(curve, key) for key in ("by_step", "low_by_step", "high_by_step")]
        found = [(float(step), *ends) for step, ends in enumerate(zip(*steps, strict=False), 1) if None not in ends]
        points = [(step, value) for step, value, _, _ in found if value is not None]
        if not points or (metric.get("unit") == "dB" and min(value for _, value in points) >= NEARLY_EQUAL_DB):
            continue
        bands = [(low, high) for _, _, low, high in found if low is not None and high is not None]
        series.append(Series(source, tone, points, bands if source == IMAGINED else (), stroke))
    if not series:
        return None
    title = _fidelity_title(name, metric)
    return tag("div", tag("h3", title), line_chart(series, title, "step", compact, size=NAMED))


def _numbers_at(curve: dict, key: str) -> list[float | None]:
    """A list of numbers, None where there is none."""
    values = curve.get(key)
    return [number({"": value}, "") for value in values] if isinstance(values, list) else []


def _metric_tables(metrics: dict[str, dict]) -> Sequence[Markup]:
    """Means over all frames, and how imagined videos drift from reality."""
    means, drifts = [], []
    for name, metric in metrics.items():
        title, drift = _fidelity_title(name, metric), mapping(metric, "drift")
        means.append([title, *(_estimate(mapping(metric, "of", source)) for source in SOURCES)])
        bound = number(drift, "bound")
        shown = "–" if bound is None else datum(bound, compact(bound))
        drifts.append([title, _estimate(mapping(drift, "slope")), shown, _passed(drift)])
    return [
        table(["mean over all frames", *SOURCES], means, numeric=(1, 2, 3)),
        _heading("Drift of the imagined videos"),
        table(["", "change a step", "bound", "first worse at step"], drifts, numeric=(1, 2, 3)),
    ]


def _passed(drift: dict) -> object:
    """The step at which the bound is passed, with its interval; beyond the horizon is "never"."""
    if number(drift, "bound") is None:
        return "–"
    steps = [number(drift, "passed", key) for key in ("step", "low", "high")]
    step, low, high = ("never" if one is None else datum(one, f"{one:.0f}") for one in steps)
    return step if steps[0] is None and steps[1] is None else join([step, " [", low, ", ", high, "]"])


def _heading(text: str) -> Markup:
    return tag("h3", text, style="margin-top:14px")


def _estimate(estimate: dict, as_share: bool = False) -> object:
    value, low, high = (number(estimate, key) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "–"
    show = percent if as_share else compact
    return join([datum(value, show(value)), f" [{show(low)}, {show(high)}]"])


def _failure_tables(failures: dict) -> Sequence[Markup]:
    """Shares of each outcome, and how often each real one was imagined as which."""
    modes = failures.get("modes")
    modes = [mode for mode in modes if isinstance(mode, str)] if isinstance(modes, list) else []
    shares, counts = mapping(failures, "shares"), mapping(failures, "confusion").get(IMAGINED)
    if not modes or not isinstance(counts, list) or len(counts) != len(modes):
        return []
    names = [mode.replace("_", " ") for mode in modes]
    of = [
        [name, *(_estimate(mapping(shares, source, mode), as_share=True) for source in ("real", IMAGINED, CEILING))]
        for name, mode in zip(names, modes, strict=True)
    ]
    confusion = [
        [name, *(f"{count:g}" if isinstance(count, int) and count else "·" for count in row)]
        for name, row in zip(names, counts, strict=True)
        if isinstance(row, list)
    ]
    columns = tuple(range(1, len(names) + 1))
    return [
        _heading("Outcomes, as a share of all episodes"),
        table(["", "real", "imagined", "read from the real frames"], of, numeric=(1, 2, 3)),
        _heading("What each real outcome (rows) was imagined as (columns)"),
        table(["", *names], confusion, numeric=columns),
    ]
