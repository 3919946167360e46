"""`wmpo fidelity`: how true the imagined videos of a run are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.cli.options import Folder, user_path
from wmpo_ray.core.console import make_console
from wmpo_ray.report.formats import compact, percent
from wmpo_ray.runs.folder import RunFolder

NAMES = {"imagined": "imagined", "still": "first frame repeated", "ceiling": "ceiling"}


def add_fidelity(app: typer.Typer) -> None:
    app.command()(fidelity)


def fidelity(
    folder: Folder,
    round: Annotated[int | None, typer.Option(min=1, help="Round to measure; the newest one if absent.")] = None,
    num_episodes: Annotated[int | None, typer.Option(min=1, help="Held-out episodes; all of them if absent.")] = None,
    lpips: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="WMPO_LPIPS",
            parser=user_path,
            help="Weights of LPIPS with AlexNet; wmpo_ray/fidelity/learned_distance.py says how to write them.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, for programs.")] = False,
) -> None:
    """Measure how true the imagined videos of a run are, on real trajectories that it was not trained on.

    The actions of held-out episodes are replayed in the world model. Writes fidelity.json and the report of the run.
    """
    config = RunFolder(folder).config
    from cluster.events.progress import Reporter
    from cluster.recipes.rounds import config_of_round
    from wmpo_ray.core.runtime_settings import configure_process
    from wmpo_ray.fidelity.run_fidelity import fidelity_of_run, measured_round, write_fidelity
    from wmpo_ray.report.html import write_report

    configure_process(config.cluster.threads_per_process)
    with RunFolder.open(folder, config) as run:  # nobody may replace the models meanwhile
        number = measured_round(run, round)
        own = config_of_round(config, run.path, number)
        bar = Reporter(make_console(stderr=True)).bar
        content = fidelity_of_run(run, own, number, bar, num_episodes, lpips)
        path = write_fidelity(run, number, content)
        report = write_report(run.path)
    if as_json:
        typer.echo(json.dumps(content, indent=1, allow_nan=False))
        return
    console = make_console()
    print_fidelity(console, content)
    console.print(f"{path}\nreport: {report}", soft_wrap=True, highlight=False)


def print_fidelity(console: Console, content: Mapping[str, Any]) -> None:
    """The content of `fidelity.json` as tables."""
    console.print(_metrics_table(content))
    console.print(_drift_table(content))
    labels = content.get("labels")
    if labels:
        console.print(_labels_table(labels, content["horizon"]))
    failures = content.get("failures")
    if failures:
        console.print(_shares_table(failures))
        console.print(_confusion_table(failures))
    for sentence in content["missing"].values():
        console.print(sentence, highlight=False)


def _metrics_table(content: Mapping[str, Any]) -> Table:
    title = f"{content['num_episodes']} held-out episodes: mean over all frames [95% interval]"
    table = Table("", *NAMES.values(), title=title)
    for metric in content["metrics"].values():
        table.add_row(_title(metric), *(estimate_text(metric["of"][source]) for source in NAMES))
    return table


def _drift_table(content: Mapping[str, Any]) -> Table:
    table = Table("drift of the imagined videos", "change a step", "bound", "first worse at step")
    for metric in content["metrics"].values():
        drift = metric["drift"]
        bound = "–" if drift["bound"] is None else compact(drift["bound"])
        table.add_row(_title(metric), estimate_text(drift["slope"]), bound, _passed_text(drift))
    return table


def _title(metric: Mapping[str, Any]) -> str:
    return f"{metric['title']} ({metric['unit']})" if metric["unit"] else metric["title"]


def _labels_table(labels: Mapping[str, Any], horizon: int) -> Table:
    safe = f"steps right in {percent(labels['bound'], 0)}"
    table = Table("labels", "right [95% interval]", "false positives", "false negatives", safe)
    for source, name in NAMES.items():
        found = labels[source]
        wrong = (str(found["false_positives"]), str(found["false_negatives"]))
        table.add_row(name, _share_text(found["agreement"]), *wrong, f"{found['safe_horizon']} of {horizon}")
    return table


def _shares_table(failures: Mapping[str, Any]) -> Table:
    table = Table("outcome", "real", "imagined", "difference", "read from real frames", title="Share of all episodes")
    shares, differences = failures["shares"], failures["differences"]["imagined"]
    for mode in failures["modes"]:
        values = [_share_text(shares[source][mode]) for source in ("real", "imagined")]
        difference = _share_text(differences[mode], signed=True)
        table.add_row(mode.replace("_", " "), *values, difference, _share_text(shares["ceiling"][mode]))
    return table


def _confusion_table(failures: Mapping[str, Any]) -> Table:
    names = [mode.replace("_", " ") for mode in failures["modes"]]
    agreement = failures["agreement"]
    same = f"the same in {_share_text(agreement['imagined'])}; as read from real frames {_share_text(agreement['ceiling'])}"
    table = Table("real \\ imagined", *names, caption=same)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in zip(names, failures["confusion"]["imagined"], strict=True):
        table.add_row(name, *(str(count) if count else "·" for count in row))
    return table


def estimate_text(estimate: Mapping[str, float | None]) -> str:
    """Such as `32.8 [32.3, 33.2]`; a dash where nothing was measured."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "–"
    return compact(value) if low == high == value else f"{compact(value)} [{compact(low)}, {compact(high)}]"


def _share_text(estimate: Mapping[str, float], signed: bool = False) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if signed:
        return f"{100 * value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def _passed_text(drift: Mapping[str, Any]) -> str:
    """At which step the mean is first worse than the bound, with its interval."""
    ends = [drift["passed"][key] for key in ("step", "low", "high")]
    if drift["bound"] is None:
        return "–"
    step, low, high = (str(end) if end is not None else "never" for end in ends)
    return "never" if ends[:2] == [None, None] else f"{step} [{low}, {high}]"
