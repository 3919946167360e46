"""The command line: reads arguments, loads the configuration, calls the pipeline, prints tables.

A mistake of the user's is one line on stderr and exit code 2; an interruption is exit code 130, a preemption 75. Heavy modules are
imported inside the commands, so that `--help` and a wrong key answer at once.
"""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from cluster.cli.data_commands import add_data
from cluster.cli.fidelity_commands import add_fidelity
from cluster.cli.fork_command import add_fork
from cluster.cli.inspect_commands import add_inspection
from cluster.cli.job_commands import add_jobs
from cluster.cli.learner_commands import add_learners
from cluster.cli.model_commands import add_models
from cluster.cli.monitor_commands import add_monitoring
from cluster.cli.options import Folder, Out, Overrides, Rounds, Source, user_path, with_rounds
from cluster.cli.serve_commands import add_serving
from cluster.cli.tables import print_evaluation, print_summary
from cluster.cli.watch_commands import add_watching
from cluster.host.job import cluster_address, job_id, run_folder
from cluster.host.preemption import Preempted, end_now, leave_on_sigterm, restart_on_crash
from cluster.host.proxies import reach_loopback_directly
from cluster.host.security import prepare_ray
from wmpo_ray.config.loading import describe_errors, load_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.console import make_console, replace_unencodable
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.starts import SPAN

USER_ERROR, INTERRUPTED = 2, 130
RESUMABLE = ("run", "stage")
MENDABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),  # a full disk, a folder that is not ours
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),  # a path that cannot be one
)
MAX_SHOWN_PATH = 200


class OneLineErrors(TyperGroup):
    """Turns errors that the user can fix into one line and an exit code; other errors keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        replace_unencodable()
        reach_loopback_directly()
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error))
        except ValidationError as error:
            _fail("\n".join(describe_errors(error)))
        except OSError as error:
            if error.errno not in MENDABLE:
                raise
            path = str(error.filename2 or error.filename or "while writing")
            _fail(f"{path if len(path) <= MAX_SHOWN_PATH else '...' + path[-MAX_SHOWN_PATH:]}: {error.strerror}")
        except KeyboardInterrupt:
            resume = ": the same command with --resume goes on from here" if ctx.invoked_subcommand in RESUMABLE else ""
            typer.echo(f"interrupted{resume}", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Preempted:
            typer.echo("preempted: the same command with --resume goes on from here", err=True)
            end_now()


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

Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Resume a run that was interrupted, or with changed settings; after an interruption a job does so by "
        "itself when it is submitted again.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also log every state change of every group.")]
Serial = Annotated[
    bool, typer.Option("--serial", help="Run everything in this process, without Ray; the result is the same.")
]
FromRobot = Annotated[
    bool,
    typer.Option(
        "--from-robot",
        help="Wait until the folders of demos.source, collect.source and gate.source hold enough episodes.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Continue even if the imagined world fails the gate; what is learned may then hold in imagination alone.",
    ),
]


@app.command()
def run(
    source: Source,
    out: Out = None,
    resume: Resume = None,
    serial: Serial = False,
    force: Force = False,
    overrides: Overrides = None,
    rounds: Rounds = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    restarts: Annotated[int, typer.Option(min=0, help="Number of automatic restarts after a crash.")] = 0,
    from_robot: FromRobot = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run every stage of the recipe in order; skip stages that are done.

    `recipe.kind` decides which stages there are; an unknown STAGE lists them. Ends with a table and a report.

    With --resume and other settings, the stages that depend on them are redone and the others kept. More --rounds than a
    finished run had go on with the next round.
    """
    config = load_config(source, with_rounds(overrides, rounds))
    if restarts:
        raise typer.Exit(restart_on_crash(_without_option(sys.argv[1:], "--restarts"), restarts, _log_restart))
    _wait_for(from_robot, config)
    folder = run_folder(out, config)
    summary = _run(config, folder, resume, serial, force, _level(quiet, verbose), until=until)
    if "result" in summary:
        make_console().print(f"report: {folder / 'report' / 'index.html'}", soft_wrap=True)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A stage of the recipe; an unknown one lists them all.")],
    source: Source,
    out: Out = None,
    resume: Resume = None,
    serial: Serial = False,
    force: Force = False,
    overrides: Overrides = None,
    from_robot: FromRobot = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run one stage; earlier stages must be done."""
    config = load_config(source, overrides or ())
    _wait_for(from_robot, config)
    _run(config, run_folder(out, config), resume, serial, force, _level(quiet, verbose), only=name)


def _run(
    config: Config, folder: Path, resume: bool | None, serial: bool, force: bool, level: int, **stages: str | None
) -> Mapping[str, Any]:
    """Run the stages of a config, `until` one or `only` one, and print the result."""
    if not serial:
        prepare_ray(cluster_address(config))
    from cluster.recipes.pipeline import run_pipeline

    options: dict[str, Any] = {
        "resume": bool(job_id()) if resume is None else resume,
        "redo": bool(resume),  # a job resumes by itself, but replaces results only with an explicit --resume
        "serial": serial,
        "force": force,
        "level": level,
        **stages,
    }
    with leave_on_sigterm():
        summary = run_pipeline(config, folder, console=make_console(stderr=True, highlight=False), **options)
    print_summary(make_console(), summary)
    return summary


@app.command()
def evaluate(
    source: Source,
    out: Out = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=user_path, help="Folder of a policy; the run's final one if absent."),
    ] = None,
    disruption: Annotated[
        str | None, typer.Option(help="Change to the scene: none, position, background or texture.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of the sampled actions; 0: the most likely ones. Else evaluation.temperature.")
    ] = None,
    num_starts: Annotated[int | None, typer.Option(min=1, max=SPAN, help="Held-out start states.")] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=user_path, help="Write the result and every outcome there, as JSON."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Measure the real success of a policy on held-out start states, with its 95% interval; saves nothing by itself."""
    chosen = list(overrides or ())
    if disruption is not None:
        chosen.append(f"environment.disruption={disruption}")
    if temperature is not None:
        chosen.append(f"evaluation.temperature={temperature}")
    config = load_config(source, chosen)
    if save is not None and not save.absolute().parent.is_dir():
        raise UserError(f"--save {save}: there is no folder {save.parent}; create it first")
    from cluster.recipes.evaluate import evaluate_policy

    result = evaluate_policy(config, run_folder(out, config), policy, num_starts, make_console(stderr=True))
    print_evaluation(make_console(), config, result)
    if save is not None:
        atomic_write(save, json.dumps({"environment": config.environment.model_dump(), "seed": config.seed, **result}))


@app.command()
def report(folder: Folder) -> None:
    """Write the HTML report of a run and print its path."""
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder} holds no run: there is no summary.json in it; name the folder given as --out")
    from wmpo_ray.report.html import write_report

    make_console().print(str(write_report(folder)), soft_wrap=True)


def _wait_for(from_robot: bool, config: Config) -> None:
    if from_robot:
        from cluster.serving.robot_wait import wait_for_robot

        wait_for_robot(config, make_console(stderr=True))


# -- helpers -----------------------------------------------------------------------------------------------------


def _log_restart(text: str) -> None:
    typer.echo(text, err=True)


def _without_option(arguments: list[str], option: str) -> list[str]:
    """Arguments without an option and its value, however it was written."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != option and not argument.startswith(f"{option}="):
            kept.append(argument)
        skip = argument == option
    return kept


def _level(quiet: bool, verbose: bool) -> int:
    if quiet and verbose:
        raise UserError("--quiet and --verbose: choose one of them")
    return logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO


add_jobs(app)
add_fork(app)
add_learners(app)
add_watching(app)
add_inspection(app)
add_fidelity(app)
add_models(app)
add_data(app)
add_monitoring(app)
add_serving(app)
