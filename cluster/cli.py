"""The command line: reads arguments, loads the configuration, calls the pipeline, prints tables.

A mistake of the user's is one line on stderr and exit code 2; an interruption is exit code 130. Heavy modules are
imported inside the commands, so that `--help` and a wrong key answer at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from wmpo_ray.config_loading import config_to_toml, describe_errors, list_presets, load_config
from wmpo_ray.errors import UserError

if TYPE_CHECKING:
    from wmpo_ray.plan import Plan

USER_ERROR, INTERRUPTED = 2, 130
RESUMABLE = ("run", "stage")
MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # a full disk, a folder that is not ours


class OneLineErrors(TyperGroup):
    """Turns what a user can mend into one line and an exit code; everything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error))
        except ValidationError as error:
            _fail("\n".join(describe_errors(error)))
        except OSError as error:
            if error.errno not in MENDABLE:
                raise
            _fail(f"{error.filename or 'while writing'}: {error.strerror}")
        except KeyboardInterrupt:
            resume = ": the same command with --resume goes on from here" if ctx.invoked_subcommand in RESUMABLE else ""
            typer.echo(f"interrupted{resume}", err=True)
            raise typer.Exit(INTERRUPTED) from None


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Improve a robot policy by reinforcement learning inside an imagined world, on Ray.\n\n"
    "Start with `wmpo run demo --out runs/demo`.",
)

Source = Annotated[str, typer.Argument(metavar="PRESET|FILE", help="A preset (see `wmpo presets`) or a TOML file.")]
Out = Annotated[Path, typer.Option("--out", file_okay=False, help="Folder of the run; created where it is missing.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")]
Serial = Annotated[bool, typer.Option("--serial", help="Everything in this process, without Ray; the same result.")]
Force = Annotated[bool, typer.Option("--force", help="Go on even if the imagined world fails the gate.")]


@app.command()
def run(
    source: Source,
    out: Out,
    resume: Resume = False,
    serial: Serial = False,
    force: Force = False,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
) -> None:
    """Run every stage in order; skip what is done.

    Stages: demos, policy, collect, world-model, reward-model, gate, optimize, evaluate. Ends with a table and a report.
    """
    config = load_config(source, overrides or ())
    from cluster.pipeline import run_pipeline

    _check_stage(until)
    summary = run_pipeline(config, out, resume=resume, serial=serial, force=force, until=until)
    _print_summary(summary)
    if "result" in summary:
        _console().print(f"report: {out / 'report' / 'index.html'}", soft_wrap=True)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of the stages that `wmpo run --help` lists.")],
    source: Source,
    out: Out,
    resume: Resume = False,
    serial: Serial = False,
    force: Force = False,
    overrides: Overrides = None,
) -> None:
    """Run one stage; those before it must be done."""
    config = load_config(source, overrides or ())
    from cluster.pipeline import run_pipeline

    _check_stage(name)
    _print_summary(run_pipeline(config, out, resume=resume, serial=serial, force=force, only=name))


@app.command()
def evaluate(
    source: Source,
    out: Out,
    policy: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of a policy; the run's final one if absent."),
    ] = None,
    disruption: Annotated[
        str | None, typer.Option(help="none, position, background or texture: what is changed in the scene.")
    ] = None,
    num_starts: Annotated[int | None, typer.Option(min=1, help="Held-out start states.")] = None,
    overrides: Overrides = None,
) -> None:
    """Measure the real success of a policy on held-out start states."""
    chosen = list(overrides or ())
    if disruption is not None:
        chosen.append(f"environment.disruption={disruption}")
    config = load_config(source, chosen)
    from cluster.pipeline import evaluate_policy

    result = evaluate_policy(config, out, policy, num_starts)
    table = Table("", "value", title=f"disruption: {config.environment.disruption}")
    for key, value in result.items():
        table.add_row(key, _success(value) if _is_rate(value) else escape(str(value)))
    _console().print(table)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
) -> None:
    """Write the HTML report of a run again and print its path."""
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder} holds no run: there is no summary.json in it; name the folder given as --out")
    from wmpo_ray.report.html import write_report

    _console().print(str(write_report(folder)), soft_wrap=True)


@app.command()
def plan(source: Source, overrides: Overrides = None) -> None:
    """Show what would run where, its memory and its work, without running it."""
    config = load_config(source, overrides or ())
    from wmpo_ray.plan import check_resources, make_plan

    _print_plan(make_plan(config))
    if not config.cluster.address:
        check_resources(config, os.cpu_count() or 1, _num_gpus())


@app.command()
def doctor(
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Start Ray and run one task.")] = True,
) -> None:
    """Check this machine: versions, devices, rendering, Ray; exit code 1 if something required is missing."""
    from cluster.doctor import VERDICT_STYLES, Verdict, examine

    checks = examine(with_ray=ray)
    table = Table("check", "verdict", "found", title="wmpo doctor")
    for check in checks:
        style = VERDICT_STYLES[check.verdict]
        table.add_row(check.name, f"[{style}]{check.verdict.value}[/]", escape(check.detail))
    _console().print(table)
    if any(check.verdict is Verdict.FAIL for check in checks):
        raise typer.Exit(1)


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Show every setting of this one, as TOML.")] = None,
) -> None:
    """List the presets, or show one in full."""
    if name is None:
        typer.echo("\n".join(list_presets()))
    else:
        typer.echo(config_to_toml(load_config(name)), nl=False)


# -- tables ------------------------------------------------------------------------------------------------------


def _console() -> Console:
    return Console()


def _check_stage(name: str | None) -> None:
    from cluster.pipeline import STAGES

    if name is not None and name not in STAGES:
        raise UserError(f"unknown stage {name!r}: the stages are {', '.join(STAGES)}")


def _is_rate(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


def _success(rate: Mapping[str, float]) -> str:
    return f"{rate['value']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"


def _print_summary(summary: Mapping[str, Any]) -> None:
    console = _console()
    result = summary.get("result")
    if result:
        table = Table("policy", "real success [95% interval]", "start states", title="Held-out start states")
        for label, key in (("base", "base_success"), ("WMPO", "final_success")):
            table.add_row(label, _success(result[key]), str(result[key]["num"]))
        table.add_section()
        table.add_row("gain", f"{result['gain_points']:+.1f} points", "")
        console.print(table)
    stages = summary.get("stages", {})
    if stages:
        table = Table("stage", "seconds")
        table.columns[1].justify = "right"
        for name, figures in stages.items():
            table.add_row(name, f"{figures['seconds']:.1f}")
        table.add_section()
        table.add_row("all", f"{sum(figures['seconds'] for figures in stages.values()):.1f}")
        console.print(table)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _print_plan(plan: Plan) -> None:
    console = _console()
    actors = Table("actor", "count", "CPUs each", "GPUs each", "models", "MiB of models each", title="Who runs where")
    for actor in plan.actors:
        resources = (str(actor.count), f"{actor.cpus:g}", f"{actor.gpus:g}")
        actors.add_row(actor.name, *resources, "\n".join(actor.models), f"{actor.memory_mib:.1f}")
    actors.add_section()
    actors.add_row("all", "", f"{plan.cpus:g} of {os.cpu_count()}", f"{plan.gpus:g} of {_num_gpus()}", "", "")
    models = Table("model", "parameters", "MiB", "GFLOP", title="Models")
    for model in plan.models:
        cost = f"{model.tflop * 1e3:.3g} per {model.unit}"
        models.add_row(model.name, f"{model.num_parameters:,}", f"{model.memory_mib:.1f}", cost)
    work = Table("work", "amount", "TFLOP", title="One update, at most (full length, no group rejected)")
    for item in plan.work:
        work.add_row(item.name, f"{item.amount:,} {item.unit}", f"{item.tflop:.3g}")
    work.add_section()
    work.add_row("all", "", f"{sum(item.tflop for item in plan.work):.3g}")
    for table in (actors, models, work):
        console.print(table)
    console.print(
        f"real trajectories: {plan.real_budget} collected, {plan.real_demos} demonstrations\n"
        f"slots: {plan.num_slots} groups; video of one request: {plan.video_mib:.1f} MiB; "
        f"batch of one update: {plan.batch_mib:.1f} MiB"
    )
