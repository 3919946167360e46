"""Read-only commands: the ledger of a run, the plan of a run, this machine, the presets."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cluster.cli.options import Folder, Overrides, Source, user_path
from cluster.host.job import cluster_address
from cluster.host.security import prepare_ray
from wmpo_ray.config.dumping import config_to_toml
from wmpo_ray.config.loading import described, list_presets, load_config
from wmpo_ray.core.console import make_console
from wmpo_ray.core.errors import UserError
from wmpo_ray.kinds import TABLES
from wmpo_ray.runs.folder import RunFolder

if TYPE_CHECKING:
    from cluster.host.preflight import Check


def add_inspection(app: typer.Typer) -> None:
    for command in (ledger, verify, plan, doctor, presets):
        app.command()(command)


def ledger(folder: Folder) -> None:
    """Show the ledger of a run: how many groups were issued, rejected and trained."""
    from cluster.loop.ledger import FILE_NAME, Ledger

    if not (folder / FILE_NAME).is_file():
        raise UserError(f"{folder} has no {FILE_NAME}: its stage optimize has not begun")
    book = Ledger.read(folder / FILE_NAME)
    table = Table("groups", "number")
    table.columns[1].justify = "right"
    for name, number in book.account()._asdict().items():
        table.add_row(name.replace("_", " "), str(number))
    for verdict, number in sorted(book.verdicts().items()):
        table.add_row(f"  rejected: {verdict}", str(number))
    console = make_console()
    console.print(f"Ledger of {folder}", soft_wrap=True)  # as a title it would be broken at the table's width
    console.print(table)
    if not book.account().balances:
        raise UserError(f"{folder}: the account does not balance")


def verify(
    folder: Folder,
    repeat: Annotated[
        bool, typer.Option("--rerun", help="Also run it again and compare: bit for bit on the same kind of processor.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", parser=user_path, help="Folder of the repetition; a temporary one if absent."
        ),
    ] = None,
    serial: Annotated[bool, typer.Option("--serial", help="Repeat it in this process, without Ray.")] = False,
) -> None:
    """Verify a run: hashes of its files, and its result derived from the outcome of each start.

    The exit code is 1 if something does not match.
    """
    if (out is not None or serial) and not repeat:
        raise UserError("--out and --serial say how a run is repeated: add --rerun")
    if out is not None and out.resolve() == folder.resolve():
        raise UserError(f"--out {out} is the run itself: choose another folder")
    from cluster.host.preflight import Verdict
    from cluster.recipes.verification import rerun, verify_run

    checks = verify_run(folder)
    _print_checks(f"wmpo verify {folder}", checks)
    if repeat:
        if not serial:
            prepare_ray(cluster_address(RunFolder(folder).config))
        with tempfile.TemporaryDirectory(prefix="wmpo-verify-") as temporary:
            place = out if out is not None else Path(temporary) / "run"
            repeated = rerun(folder, place, serial=serial, console=make_console(stderr=True, highlight=False))
        _print_checks("repeated", repeated)
        checks += repeated
    if any(check.verdict is Verdict.FAIL for check in checks):
        raise typer.Exit(1)


def plan(
    source: Source,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="A running cluster to plan for; cluster.address if absent.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="Effective throughput of one GPU; 400 if absent, unused without GPUs."),
    ] = None,
    keep_rate: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of the groups that have mixed outcomes and are trained on.")
    ] = 0.5,
) -> None:
    """Show placement, memory, work and time of a run without running it.

    With a cluster, the exit code is 2 if the run does not fit there.
    """
    config = load_config(source, overrides or ())
    from cluster.cli.plan_tables import print_fit, print_plan, read_nodes, totals
    from cluster.recipes.recipe_table import recipe_of
    from cluster.workers.placement import check_placement
    from wmpo_ray.planning.plan import make_plan

    cluster = address if address is not None else cluster_address(config)
    prepare_ray(cluster)
    nodes = read_nodes(cluster) if cluster else []
    here = {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(_num_gpus())}
    recipe_of(config)  # raises for what a run would refuse
    print_plan(make_console(), make_plan(config), config, totals(nodes) if cluster else here, tflops, keep_rate)
    if cluster:
        print_fit(make_console(), config, nodes)
    else:
        try:
            check_placement(config, here)
        except UserError as error:  # a plan can be made before there is a cluster
            typer.echo(f"not on this machine: {error}")


def doctor(
    source: Annotated[
        str | None, typer.Argument(metavar="[PRESET|FILE]", help="Also check the requirements of this run.")
    ] = None,
    overrides: Overrides = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Start Ray and run one task.")] = True,
) -> None:
    """Check this machine: versions, devices, rendering, Ray; exit code 1 if something required is missing."""
    if overrides and source is None:
        raise UserError("--set changes the settings of a run: name its preset or file before it")
    config = load_config(source, overrides or ()) if source is not None else None
    prepare_ray("")
    from cluster.host.doctor import Verdict, examine

    checks = examine(with_ray=ray, config=config)
    _print_checks("wmpo doctor", checks)
    if any(check.verdict is Verdict.FAIL for check in checks):
        raise typer.Exit(1)


def presets(
    name: Annotated[str | None, typer.Argument(help="Show every setting of this one, as TOML.")] = None,
    kinds: Annotated[
        bool, typer.Option("--kinds", help="List the values of each kind, including those of installed packages.")
    ] = False,
) -> None:
    """List the presets, or show one in full."""
    if kinds and name is not None:
        raise UserError(f"{name} and --kinds are two questions; leave one of them out")
    if kinds:
        from cluster.recipes.recipe_table import RECIPES
        from wmpo_ray.algorithms.base import algorithm_names

        names = {"recipe.kind": list(RECIPES), "algorithm.kind": algorithm_names()}
        names |= {table.key: table.names() for table in TABLES}
        typer.echo("\n".join(f"{key}: {', '.join(each)}" for key, each in names.items()))
    elif name is None:
        _print_presets()
    else:
        typer.echo(config_to_toml(load_config(name)), nl=False)


def _print_presets() -> None:
    """With the first sentence of what each says of itself."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name in list_presets():
        table.add_row(name, escape(re.split(r"(?<=[.]) (?=[A-Z])", described(name))[0]))
    make_console().print(table)


def _print_checks(title: str, checks: Sequence[Check]) -> None:
    from cluster.host.doctor import VERDICT_STYLES

    table = Table("check", "verdict", "found", title=title)
    for check in checks:
        table.add_row(check.name, Text(check.verdict.value, VERDICT_STYLES[check.verdict]), Text(check.detail))
    make_console().print(table)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
