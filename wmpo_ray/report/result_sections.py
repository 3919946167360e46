"""The top of the page, what the run reached and where its time went; and its provenance, at the end."""

from __future__ import annotations

from wmpo_ray.report.card import absent, card, missing
from wmpo_ray.report.charts import Interval, Series, interval_chart, line_chart, meter
from wmpo_ray.report.formats import compact, percent, points, seconds
from wmpo_ray.report.markup import Markup, datum, join, table, tag
from wmpo_ray.report.recipe_view import IMAGINES, has_stage, left_out_sentence, num_rounds, recipe_name, rounds_of
from wmpo_ray.report.run_data import RunData, mapping, number

RESULTS = ("base_success", "final_success")


def policies(run: RunData) -> tuple[tuple[str, str, str], ...]:
    """(key of the result, name, tone) of the first and of the last policy of a run or of a round."""
    if run.round > 1:
        return (RESULTS[0], "Before the round", "base"), (RESULTS[1], "After it", "final")
    return (RESULTS[0], "Base policy", "base"), (RESULTS[1], recipe_name(run.summary).policy, "final")


def success(run: RunData, key: str) -> tuple[float, float, float, int] | None:
    """(value, low, high, number of start states) of a success rate of the result."""
    result = mapping(run.summary, "result", key)
    value = number(result, "value")
    if value is None:
        return None
    low, high, num = number(result, "low"), number(result, "high"), number(result, "num")
    return value, value if low is None else low, value if high is None else high, int(num or 0)


def gain_points(run: RunData) -> float | None:
    """Gain in percentage points, as the summary gives it."""
    gain = number(run.summary, "result", "gain_points")
    base, final = (success(run, key) for key in RESULTS)
    return 100 * (final[0] - base[0]) if gain is None and base and final else gain


def verdict(run: RunData) -> str:
    """One sentence: what the run did to the policy."""
    base, final = (success(run, key) for key in RESULTS)
    gain = gain_points(run)
    if base is None or final is None or gain is None:
        if base is not None:
            return (
                f"The base policy succeeds in {percent(base[0])} of its episodes; the final one is not evaluated yet."
            )
        return "This run has not been evaluated yet."
    starts = f" on {final[3]} held-out start states" if final[3] else ""
    move = f"from {percent(base[0])} to {percent(final[0])}{starts}, {points(gain)}"
    training = "Training in imagination" if has_stage(run, IMAGINES) else "Training"
    if final[1] > base[2]:
        return f"{training} raised real success {move}."
    if final[2] < base[1]:
        return f"{training} lowered real success {move}."
    return f"Real success went {move}; the 95% intervals overlap, so this run alone does not show a change."


def header(run: RunData) -> Markup:
    """Name, verdict, and notes about damaged files."""
    seed = run.summary.get("seed")
    origin = recipe_name(run.summary).title + (f" · seed {seed}" if isinstance(seed, int) else "")
    rounds = num_rounds(run)
    origin += f" · {rounds} rounds" if rounds > 1 else ""
    left_out = left_out_sentence(run.summary)
    notes = [tag("p", note, class_="note") for note in ([left_out] if left_out else []) + run.notes]
    return tag(
        "header",
        tag("div", tag("h1", run.name), tag("p", origin, class_="eyebrow"), class_="name-line"),
        tag("p", verdict(run), class_="verdict"),
        *notes,
    )


def result_section(run: RunData) -> Markup:
    """Base and final success with intervals: table and chart."""
    rows: list[list[object]] = []
    intervals = []
    for key, label, tone in policies(run):
        found = success(run, key)
        if found is None:
            continue
        value, low, high, num = found
        interval = join([datum(100 * low, f"{100 * low:.1f}"), " – ", datum(100 * high, percent(high))])
        name = join([tag("i", class_=f"swatch tone-{tone}"), label])
        rows.append([name, datum(value, percent(value), class_="big"), interval, datum(num, f"{num:,}")])
        intervals.append(Interval(label.split()[0], tone, value, low, high))
    if not rows:
        return card("Real success", absent(run, "success rate", "evaluate"))
    gain = gain_points(run)
    if gain is not None:
        rows.append(["Gain", datum(gain, points(gain), class_="big"), "", ""])
    return card(
        "Real success",
        table(["", "success", "95% interval", "starts"], rows, numeric=(1, 2, 3)),
        interval_chart(intervals, "Success rate with 95% interval"),
        tasks_table(run),
        recovery_note(run),
        how="Dot: share of start states that succeed. Bar: its 95% interval.",
    )


def tasks_table(run: RunData) -> Markup | None:
    """A row for each of several tasks, of the newest round that was evaluated; None for a run of one task."""
    newest = next((one for one in reversed(rounds_of(run)) if one.stage_metrics("evaluate")), run)
    evaluated, gate = newest.stage_metrics("evaluate"), newest.stage_metrics("gate")
    final, base = mapping(evaluated, "tasks_final"), mapping(run.stage_metrics("evaluate"), "tasks_base")
    rows = []
    for name in {**base, **final, **mapping(gate, "tasks")}:
        low, high = (number(final, name, end) for end in ("low", "high"))
        interval = "–" if low is None or high is None else f"{100 * low:.1f} – {percent(high)}"
        values = [number(rates, name, "value") for rates in (base, final)]
        values += [number(gate, "tasks", name, key) for key in ("label_agreement", "f1")]
        shown = ["–" if value is None else datum(value, percent(value)) for value in values]
        starts = number(final, name, "num") or number(base, name, "num") or 0
        rows.append([name, *shown[:2], interval, datum(starts, f"{starts:,.0f}"), *shown[2:]])
    if not rows:
        return None
    titles = ["task", "base", "final", "95% interval", "starts", "labels right", "F1 of labels"]
    without = mapping(gate, "left_out")
    reasons = [
        tag("p", f"{name}, {'left out' if name in without else 'kept by --force'}: {why}", class_="note")
        for name, why in {**mapping(gate, "missed"), **without}.items()
    ]
    return join([table(titles, rows, numeric=(1, 2, 3, 4, 5, 6)), *reasons])


def recovery_note(run: RunData) -> Markup | None:
    """How many episodes succeed after a failed attempt, for each policy whose environment reports failures.

    None over several rounds, each of which says its own.
    """
    if run.later:
        return None
    metrics, parts = run.stage_metrics("evaluate"), []
    for key, label, _ in policies(run):
        who = key.removesuffix("_success")
        share, failed = number(metrics, f"recovered_{who}"), number(metrics, f"failed_attempts_{who}")
        if share is not None and failed is not None:
            parts.append(f"{label}: {percent(share)} (an attempt fails in {percent(failed)} of its episodes)")
    return tag("p", f"Success after a failed attempt. {'; '.join(parts)}.", class_="lead") if parts else None


def rounds_section(run: RunData) -> Markup:
    """Real success after each round, on the same start states: chart and table."""
    found = [(f"Round {one.round}", one.round, success(one, "final_success")) for one in rounds_of(run)]
    found = [("Base policy", 0, success(run, "base_success")), *found]
    there = [(label, number, rate) for label, number, rate in found if rate is not None]
    if not there:
        return card("Real success by round", absent(run, "success rate", "evaluate"))
    points_ = [(float(number), rate[0]) for _, number, rate in there]
    series = Series("real", "real", points_, [(rate[1], rate[2]) for _, _, rate in there])
    rows = [
        [
            label,
            datum(value, percent(value), class_="big"),
            f"{100 * low:.1f} – {percent(high)}",
            datum(num, f"{num:,}"),
        ]
        for label, _, (value, low, high, num) in there
    ]
    return card(
        "Real success by round",
        line_chart([series], "Real success by round", "round", lambda rate: percent(rate, 0), y_low=0.0, y_high=1.0),
        table(["", "success", "95% interval", "starts"], rows, numeric=(1, 2, 3)),
        how="The policy that each round left, on the same held-out start states; round 0 is the base policy.",
    )


def time_section(run: RunData) -> Markup:
    """Seconds per stage, with a bar for its share."""
    stages = mapping(run.summary, "stages")
    found = {name: number(stages, name, "seconds") for name in run.stages}
    times = {name: value for name, value in found.items() if value is not None}
    if not times:
        return card("Where the time went", missing("No stage has finished yet: summary.json has no times."))
    total = sum(times.values())
    longest = max(times.values()) or 1.0
    rows = [
        [
            name,
            datum(value, seconds(value)),
            percent(value / total if total else 0.0, 0),
            meter(value / longest, "time"),
        ]
        for name, value in times.items()
    ]
    rows.append([tag("b", "total"), datum(total, seconds(total), class_="big"), "", ""])
    return card(
        "Where the time went",
        table(["stage", "time", "share", ""], rows, numeric=(1, 2)),
        how="Wall-clock time of each stage, in order; the longest fills its bar.",
        kind="card times",
    )


def provenance_section(run: RunData) -> Markup:
    """Machine, versions, config hash, and every metric of every stage."""
    facts = [("config hash", tag("code", run.summary["config_hash"]))] if "config_hash" in run.summary else []
    facts += [(key, run.summary[key]) for key in ("seed", "machine") if key in run.summary]
    facts += [(package, version) for package, version in sorted(mapping(run.summary, "versions").items())]
    content = table(["", ""], facts) if facts else missing("No summary.json yet: versions and config hash are unknown.")
    metrics = [
        [stage, key, value if exact is None else datum(exact, compact(exact))]
        for stage in mapping(run.summary, "stages")
        for key, value in run.stage_metrics(stage).items()
        if isinstance(value, int | float | str)
        for exact in [number({"": value}, "")]
    ]
    every = table(["stage", "metric", "value"], metrics, numeric=(2,)) if metrics else None
    details = tag("details", tag("summary", f"All {len(metrics)} metrics"), every) if every else None
    return card("Provenance", content, details, kind="card wide provenance")
