"""The command `fork`: a new run that keeps what other settings do not change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cluster.cli.options import Folder, Overrides, user_path
from wmpo_ray.core.console import make_console


def add_fork(app: typer.Typer) -> None:
    app.command()(fork)


def fork(
    folder: Folder,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", parser=user_path, help="Folder of the new run; must not be there yet."),
    ],
    overrides: Overrides = None,
    branch: Annotated[
        bool, typer.Option("--branch", help="Go on from the run's last update, with settings of optimize changed.")
    ] = False,
) -> None:
    """Make a new run from an old one with other settings.

    Every stage whose result does not depend on the changed settings is copied, the others will be run. The old run stays
    as it is. `wmpo run OUT/settings.toml --out OUT` goes on with the new one.

    With --branch the new run takes over the training where it stands: weights, optimizer and progress. Its settings say
    what the updates so far were made with.
    """
    from cluster.recipes.reuse.branch import branch_run
    from cluster.recipes.reuse.fork import SETTINGS, fork_run

    if branch:
        make_console().print(f"{branch_run(folder, out, overrides or ())} updates taken over")
        _print_command(out / SETTINGS, out, " --resume")
        return
    steps = fork_run(folder, out, overrides or ())
    console = make_console()
    table = Table("stage", "", "because of")
    goes_on = False
    for each in steps:
        goes_on |= bool(each.is_kept and each.reason)
        what = ("goes further" if each.reason else "kept") if each.is_kept else "to be run"
        table.add_row(each.label, what, escape(each.reason))
    console.print(table)
    _print_command(out / SETTINGS, out, " --resume" if goes_on else "")


def _print_command(settings: Path, out: Path, resume: str) -> None:
    make_console().print(f"go on with: wmpo run {settings} --out {out}{resume}", soft_wrap=True, highlight=False)
