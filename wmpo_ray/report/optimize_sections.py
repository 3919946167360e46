"""What happened while the policy was optimised: truth of imagination, queue, time, health; and how failures changed."""

from __future__ import annotations

from collections.abc import Sequence

from wmpo_ray.core.types import Verdict
from wmpo_ray.report.card import absent, card, missing
from wmpo_ray.report.charts import SMALL, Series, legend, line_chart, meter, stacked_bars
from wmpo_ray.report.formats import compact, percent
from wmpo_ray.report.markup import Markup, datum, join, table, tag
from wmpo_ray.report.recipe_view import IMAGINES, has_queue, has_stage, recipe_name
from wmpo_ray.report.result_sections import success
from wmpo_ray.report.run_data import RunData, mapping, number

NOT_STARTED = "Nothing yet: metrics.jsonl has no such metrics because optimize has not started."
MAX_SMALL_CHARTS = 12  # on one card
EXPLOITATION = 0.05  # a rise of imagined and a fall of real success that are no noise any more
QUEUE_TONES = {
    "admit": "strong",
    "uniform": "third",
    "undecided": "imagined",
    "outside": "second",
    "stale": "warn",
    "surplus": "faint",
}
LEARNING = (  # where the policy learns from recorded episodes: the loss of GRPO says nothing
    ("policy/loss", "Loss", "Mean over the steps of an update."),
    (
        "preference/accuracy",
        "Preference accuracy",
        "Share of pairs whose preferred trajectory gained more; a half is chance.",
    ),
)
TIMES = (("imagine", "imagined"), ("score", "second"), ("update", "final"), ("broadcast", "warn"))


def success_section(run: RunData) -> Markup:
    """Success in training against real success, update by update; real success alone where nothing is rolled out."""
    if has_stage(run, IMAGINES):
        return _imagination_section(run)
    title = "Rollout success against real success" if has_queue(run) else "Real success by update"
    first = "the base policy" if run.round == 1 else f"the policy of round {run.round - 1}"
    how = f"Real: measured on held-out start states, with its 95% interval; update 0 is {first}."
    series = []
    if has_queue(run):
        how = "Rollouts: the share of the training rollouts in the environment that succeed. " + how
        series.append(Series("rollouts", "second", rollout_curve(run), stroke="dashed"))
    series = [one for one in [*series, Series("real", "real", *real_curve(run))] if one.points]
    if not run.metrics or not series:
        return card(title, missing(NOT_STARTED))
    chart = line_chart(series, title, "update", lambda value: percent(value, 0), y_low=0.0, y_high=1.0)
    return card(title, chart, best_note(run), how=how)


def curves_by_round_section(rounds: Sequence[RunData]) -> Markup:
    """Success in training and real success, update by update: a small chart for each of the newest rounds."""
    title, charts = "Success by update, round by round", []
    for run in [one for one in rounds if one.metrics][-MAX_SMALL_CHARTS:]:
        series = [Series("imagined", "imagined", imagined_curve(run), stroke="dashed")]
        if not has_stage(run, IMAGINES):
            series = [Series("rollouts", "second", rollout_curve(run), stroke="dashed")]
        series = [one for one in [*series, Series("real", "real", *real_curve(run))] if one.points]
        if series:
            name, rate = f"Round {run.round}", lambda value: percent(value, 0)
            chart = line_chart(series, f"{title}: {name}", "update", rate, y_low=0.0, y_high=1.0, size=SMALL)
            charts.append(tag("div", tag("h3", name), chart))
    if not charts:
        return card(title, missing(NOT_STARTED), kind="card wide")
    how = "Update 0 is the policy that the round began with. Real success with its 95% interval."
    return card(title, tag("div", *charts, class_="thirds"), how=how, kind="card wide")


def best_note(run: RunData) -> Markup | None:
    """Which version had the highest success on the way, and which one the run ends with; None where none was measured."""
    metrics = run.stage_metrics("optimize")
    update, value = number(metrics, "best", "update"), number(metrics, "best", "value")
    kept, metric = number(metrics, "policy_update"), mapping(metrics, "best").get("metric")
    if update is None or value is None or kept is None:
        return None
    kind = "real" if metric == "real/success_rate" else "training"
    text = f"Highest {kind} success on the way: {percent(value)} after update {update:.0f}. "
    return tag("p", text, f"The policy that this ended with is that of update {kept:.0f}.", class_="lead")


def imagined_curve(run: RunData) -> list[tuple[float, float]]:
    """(update, success of the imagined rollouts); empty where the recipe imagines nothing."""
    return run.curve("imagined/success_rate") if has_stage(run, IMAGINES) else []


def rollout_curve(run: RunData) -> list[tuple[float, float]]:
    """(update, success of the training rollouts in the environment)."""
    curve = run.curve("rollout/success_rate")
    # Older runs logged it as imagined success even where the recipe imagines nothing.
    return curve if curve or has_stage(run, IMAGINES) else run.curve("imagined/success_rate")


def _imagination_section(run: RunData) -> Markup:
    """Imagined against real success, update by update."""
    title = "Imagined against real success"
    series = [Series("imagined", "imagined", imagined_curve(run), stroke="dashed")]
    series.append(Series("rollouts in the environment", "imagined", rollout_curve(run), stroke="dashed"))
    verified = run.curve("imagined/verified_success_rate")
    if verified != imagined_curve(run):  # without a second world model they are the same
        series.append(Series("verified", "second", verified, stroke="dotted"))
    series.append(Series("real", "real", *real_curve(run)))
    series.append(Series("labels right", "strong", run.curve("real/label_agreement"), stroke="dotted"))
    series = [one for one in series if one.points]
    if not run.metrics or not series:
        return card(title, missing(NOT_STARTED))
    return card(
        title,
        line_chart(series, title, "update", lambda value: percent(value, 0), y_low=0.0, y_high=1.0),
        best_note(run),
        tag("p", "This happened here: align the world model again.", class_="bad") if exploits(run) else None,
        how="Both should rise: imagined rising while real falls is world-model exploitation. "
        "Labels right: share of imagined outcomes that the real environment confirms.",
    )


def real_curve(run: RunData) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Real success where it was measured, with the base policy as update 0."""
    points, intervals = [], []
    base = success(run, "base_success")
    if base is not None:
        points.append((0.0, base[0]))
        intervals.append((base[1], base[2]))
    for line in run.metrics:
        value = number(line, "real/success_rate")
        if value is None:
            continue
        low, high = number(line, "real/success_low"), number(line, "real/success_high")
        points.append((float(line["update"]), value))
        intervals.append((value if low is None else low, value if high is None else high))
    return points, intervals


def exploits(run: RunData) -> bool:
    """Whether imagined success rose while real success fell, between the first and the last real measurement."""
    imagined = dict(run.curve("imagined/success_rate"))
    both = [(imagined[update], real) for update, real in run.curve("real/success_rate") if update in imagined]
    if len(both) < 2:
        return False
    (first_imagined, first_real), (last_imagined, last_real) = both[0], both[-1]
    return last_imagined - first_imagined > EXPLOITATION and first_real - last_real > EXPLOITATION


def queue_section(run: RunData) -> Markup:
    """What became of the groups of each update."""
    parts = [(verdict.value, QUEUE_TONES.get(verdict.value, "warn"), f"queue/{verdict.value}") for verdict in Verdict]
    how = (
        "Groups per update. Only admitted ones train. Uniform: all outcomes equal, nothing to learn. "
        "Stale: made by weights that are too old. Surplus: not needed for this update."
    )
    return _stacked(run, "Verdicts of the queue", parts, how)


def update_time_section(run: RunData) -> Markup:
    """Seconds of each update, by what they were spent on."""
    imagines = has_stage(run, IMAGINES)
    names = {} if imagines else {"imagine": "rollout"}  # the world that they act in is then the environment
    parts = [(names.get(name, name), tone, f"time/{name}_s") for name, tone in TIMES]
    how = "Seconds by work. Imagination should dominate; " if imagines else "Seconds by work; "
    how += "where actors work in parallel the sum exceeds the wall clock."
    return _stacked(run, "Seconds per update", parts, how)


def _stacked(run: RunData, title: str, parts: Sequence[tuple[str, str, str]], how: str) -> Markup:
    found = [(label, tone, dict(run.curve(key))) for label, tone, key in parts]
    found = [entry for entry in found if any(value > 0 for value in entry[2].values())]
    if not found:
        return card(title, missing(NOT_STARTED))
    updates = sorted({update for _, _, values in found for update in values})
    stacks = [(label, tone, [max(0.0, values.get(u, 0.0)) for u in updates]) for label, tone, values in found]
    return card(title, stacked_bars(updates, stacks, title, "update"), how=how)


def health_section(run: RunData) -> Markup:
    """Signs that the policy updates are sound."""
    charts = []
    for key, title, how in (
        *(() if has_queue(run) else LEARNING),
        (
            "policy/clip_fraction",
            "Clipped share",
            "Share of ratios outside the clip range; above a half, steps are too big.",
        ),
        ("policy/grad_norm", "Gradient norm", "Before clipping; spikes announce a collapse."),
        (
            "policy/logprob_distance",
            "Log-probability distance",
            "Stored against recomputed at the same weights; near zero.",
        ),
    ):
        points = run.curve(key)
        if points:
            chart = line_chart([Series("", "final", points)], title, "update", compact, y_low=0.0, size=SMALL)
            charts.append(tag("div", tag("h3", title), chart, tag("p", how, class_="how")))
    title = "Health of the policy updates"
    if not charts:
        return card(title, missing(NOT_STARTED), kind="card wide")
    skipped = run.curve("policy/skipped_steps")[-1:]  # counted since the start of the run
    ratio = run.curve("policy/ratio_mean")
    mean = f"; mean ratio of the last update {compact(ratio[-1][1])}" if ratio else ""
    counts: list[object] = [datum(value, f"{value:.0f}") for _, value in skipped]
    lead = tag("p", "Steps skipped because the loss was not finite: ", *(counts or ["not logged"]), mean, class_="lead")
    return card(title, tag("div", *charts, class_="thirds"), lead, kind="card wide")


def failures_section(run: RunData) -> Markup:
    """Rates of the visible failure modes, base against final policy."""
    title = "How episodes fail"
    base = mapping(run.stage_metrics("evaluate"), "failures_base") or mapping(run.stage_metrics("collect"), "failures")
    final = mapping(run.stage_metrics("evaluate"), "failures_final")
    modes = [mode for mode in {**base, **final} if (number(base, mode), number(final, mode)) != (None, None)]
    if not modes:
        return card(title, absent(run, "failure rates", "evaluate"))
    short, before = recipe_name(run.summary).short, "base" if run.round == 1 else "before"
    largest = max(number(rates, mode) or 0.0 for rates in (base, final) for mode in modes) or 1.0
    rows = [
        [mode.replace("_", " "), *_rates(base, final, mode), _bars(base, final, mode, largest)]
        for mode in sorted(modes, key=lambda mode: -(number(base, mode) or 0.0))
    ]
    return card(
        title,
        legend([(before, "base"), (short, "final")]),
        table(["failure", before, short, ""], rows, numeric=(1, 2)),
        how="Share of all episodes that failed and showed this mistake on the way; one episode can show several. "
        "Learning shows as shorter second bars.",
    )


def _rates(base: dict, final: dict, mode: str) -> list[object]:
    values = (number(base, mode), number(final, mode))
    return ["–" if value is None else datum(value, percent(value)) for value in values]


def _bars(base: dict, final: dict, mode: str, largest: float) -> Markup:
    pairs = ((number(base, mode), "base"), (number(final, mode), "final"))
    return join([meter(value / largest, tone) for value, tone in pairs if value is not None])
