"""Commands for published models: parity with the reference code, and inspection and conversion of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cluster.cli.options import user_path
from wmpo_ray.core.console import make_console
from wmpo_ray.core.errors import UserError

SHOWN_NAMES = 8  # of tensors that do not fit
ModelPath = Annotated[
    Path, typer.Argument(metavar="PATH", parser=user_path, help="A folder of a model, or a file of weights.")
]


def add_models(app: typer.Typer) -> None:
    app.command()(parity)
    checkpoints = typer.Typer(no_args_is_help=True, help="Inspect model folders, and convert them to another layout.")
    checkpoints.command(name="inspect")(inspect_checkpoint)
    checkpoints.command()(convert)
    app.add_typer(checkpoints, name="checkpoints")


def parity(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", parser=user_path, help="Fixtures: world_model/, vae/, policy/, reward/, grpo/, ..."
        ),
    ],
) -> None:
    """Compare our models with published inputs and outputs; exit code 1 if one is out of tolerance."""
    from wmpo_ray.parity.fixtures import run_fixtures
    from wmpo_ray.parity.world_model_fixtures import ATTENTION

    table = Table("case", "tensor", "max abs error", "tolerance", "verdict", title=f"Parity with {folder}")
    num_cases, num_failed, unread = 0, 0, []
    for fixture, cases in run_fixtures(folder):
        if cases is None:
            unread.append(fixture)
            table.add_row(fixture, "", "", "", Text("not there yet", "yellow"), end_section=True)
            continue
        for case in cases:
            verdict = Text("ok", "green") if case.passed else Text("FAILED", "red")
            name = case.case if case.case == fixture else f"{fixture}: {case.case}"
            table.add_row(name, case.tensor, f"{case.max_error:.3g}", f"{case.tolerance:.3g}", verdict)
        table.add_section()
        num_cases += len(cases)
        num_failed += sum(not case.passed for case in cases)
    make_console().print(table)
    make_console().print(
        f"{num_cases} cases, {num_failed} failed" + (f"; not compared: {', '.join(unread)}" * bool(unread))
    )
    make_console().print(f"compared on the CPU in float32; attention of the world model: {ATTENTION}")
    if not num_cases:
        raise UserError(f"{folder}: nothing in it can be compared yet")
    if num_failed:
        raise typer.Exit(1)


def inspect_checkpoint(
    path: ModelPath,
    values: Annotated[
        bool, typer.Option("--values/--no-values", help="Read every tensor and check for non-finite values.")
    ] = True,
) -> None:
    """Show a checkpoint's layout, sizes, dtype and matching keys; exit code 1 if it cannot be loaded."""
    from wmpo_ray.checkpoints.inspection import inspect_path

    found = inspect_path(path, read_values=values)
    table = Table("", "value")
    for name, text in found.facts().items():
        table.add_row(name, text)
    lists = {"missing": found.missing, "foreign": found.foreign, "wrong": found.wrong, "problems": found.problems}
    for what, names in lists.items():
        more = f"\nand {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        if names:
            table.add_row(what, "\n".join(names[:SHOWN_NAMES]) + more)
    if found.not_finite:
        table.add_row("not finite", "\n".join(found.not_finite[:SHOWN_NAMES]))
    console = make_console()
    console.print(str(path), soft_wrap=True)
    console.print(table)
    if not found.loadable:
        raise typer.Exit(1)


def convert(
    source: ModelPath,
    out: Annotated[Path, typer.Argument(metavar="DIR", parser=user_path, help="Folder to write; must not exist.")],
    layout: Annotated[
        str,
        typer.Option(help="reference (the published names), diffusers, transformers, or wmpo (what `wmpo run` loads)."),
    ],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    ema: Annotated[bool, typer.Option("--ema/--raw", help="Averaged weights where there are any, or raw ones.")] = True,
    drop_dead: Annotated[
        bool, typer.Option("--drop-dead", help="Leave out unused parameters of the world model.")
    ] = False,
    autoencoder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=user_path,
            help="Folder of the AutoencoderKL; layout wmpo of a world model needs it.",
        ),
    ] = None,
    max_shard: Annotated[str, typer.Option(help="Largest file of weights, such as 5GB.")] = "5GB",
) -> None:
    """Write a world model, a reward model or a policy in another layout."""
    from wmpo_ray.checkpoints.conversion import convert_checkpoint

    kind = convert_checkpoint(
        source,
        out,
        layout,
        dtype=dtype,
        ema=ema,
        drop_dead=drop_dead,
        autoencoder=autoencoder,
        max_shard_size=max_shard,
    )
    make_console().print(f"{kind} written to {out}", soft_wrap=True)
