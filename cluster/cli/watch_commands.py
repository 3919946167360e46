"""Commands that show runs. They only read run folders."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster.cli.options import Folder, user_path
from wmpo_ray.core.console import make_console
from wmpo_ray.core.errors import UserError

AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON, for programs.")]


def add_watching(app: typer.Typer) -> None:
    """Register the commands of this file."""
    for command in (status, trace, runs, compare):
        app.command()(command)


def status(
    folder: Folder,
    once: Annotated[bool, typer.Option("--once", help="Print the status once and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch a run: its stage, success, queue, workers and last faults, until it ends."""
    from wmpo_ray.watch.run_status import read_status
    from wmpo_ray.watch.status_view import frame, watch

    if as_json:
        _print_json(read_status(folder).to_json())
        return
    console = make_console()
    if once or not console.is_terminal:
        console.print(frame(read_status(folder)))
    else:
        watch(console, lambda: read_status(folder), time.sleep)


def trace(
    folder: Folder,
    update: Annotated[
        int | None, typer.Option(min=0, help="Update number, from 0; the newest complete one if absent.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            parser=user_path,
            help="File to write; trace-update-NUMBER.json in the run's folder if absent.",
        ),
    ] = None,
) -> None:
    """Write one update as a Chrome trace: what each worker did when."""
    from wmpo_ray.watch.trace import find_trace, trace_sentence, trace_tables, write_chrome_trace

    found = find_trace(folder, update)
    path = out if out is not None else folder / f"trace-update-{found.update:06d}.json"
    write_chrome_trace(found, path)
    console = make_console()
    console.print(trace_tables(found))
    console.print(trace_sentence(found), highlight=False)
    _print_path(console, f"{path}")
    _print_path(console, "open it in https://ui.perfetto.dev or, offline, in chrome://tracing")


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", parser=user_path, help="Folder of runs; $WMPO_RUNS or `runs` if absent."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, the newest first: state, success, gain."""
    from cluster.host.job import DEFAULT_RUNS, RUNS
    from wmpo_ray.watch.run_table import find_runs, run_table

    place = folder if folder is not None else Path(os.environ.get(RUNS) or DEFAULT_RUNS).expanduser()
    rows = find_runs(place)
    if as_json:
        _print_json([row.to_json() for row in rows])
    elif rows:
        console = make_console()
        console.print(run_table(rows, time.time(), console.width))
    else:
        typer.echo(f"{place} holds no runs; `wmpo run demo --out {place / 'demo'}` makes one")


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", parser=user_path, help="Folder of a run, or of the runs of one method.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", parser=user_path, help="Folder of another one.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", parser=user_path, help="HTML file to write; beside A if absent."),
    ] = None,
) -> None:
    """Compare two runs: metrics with intervals, significance, curves, settings.

    Of two folders of runs, such as the seeds of two methods, it compares the final success, seeds and starts resampled.
    """
    from wmpo_ray.core.files import atomic_write
    from wmpo_ray.watch.comparison import compare_runs, comparison_tables
    from wmpo_ray.watch.comparison_page import render_comparison
    from wmpo_ray.watch.seed_comparison import group_tables, is_group

    if is_group(first) and is_group(second):
        if out is not None:
            raise UserError(f"--out {out}: a page is written of two runs only, not of two folders of runs")
        make_console().print(group_tables((first, second)))
        return
    comparison = compare_runs(first, second)
    names = (first.resolve().name, second.resolve().name)
    path = out if out is not None else first.resolve().parent / f"compare-{names[0]}-{names[1]}.html"
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: the folder {path.parent} does not exist")
    console = make_console()
    console.print(comparison_tables(comparison))
    atomic_write(path, render_comparison(comparison))
    _print_path(console, f"comparison: {path}")


def _print_path(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, allow_nan=False))
