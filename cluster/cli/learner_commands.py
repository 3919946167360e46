"""The commands `rllib` and `tune`: other learners in the imagined world of a run, and sweeps over settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cluster.cli.options import Out, Overrides, Source, user_path
from cluster.cli.tables import success_text
from cluster.host.job import cluster_address, run_folder
from cluster.host.security import prepare_ray
from wmpo_ray.config.loading import load_config, overridden, read_config_json
from wmpo_ray.config.run import Config
from wmpo_ray.core.console import make_console
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.starts import SPAN
from wmpo_ray.runs.folder import CONFIG


def add_learners(app: typer.Typer) -> None:
    app.command()(rllib)
    app.command()(tune)


def rllib(
    source: Annotated[
        str, typer.Argument(metavar="RUN|PRESET|FILE", help="Folder of a run, or its configuration with --out.")
    ],
    out: Out = None,
    algorithm: Annotated[str, typer.Option(help="PPO, APPO or IMPALA.")] = "PPO",
    frames: Annotated[
        int | None,
        typer.Option(min=1, max=10**12, help="To imagine in all; as many as the run's own `optimize` if absent."),
    ] = None,
    envs: Annotated[int, typer.Option(min=1, max=10**4, help="Episodes side by side, of each runner.")] = 64,
    runners: Annotated[int, typer.Option(min=0, max=10**3, help="Processes that imagine; 0: this one.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=10**7, help="Chunks of one update.")] = 1024,
    perfect: Annotated[bool, typer.Option("--perfect", help="In the simulator instead: the control.")] = False,
    training: Annotated[
        list[str] | None,
        typer.Option(
            "--training", metavar="KEY=VALUE", help="Setting of the algorithm by RLlib's name, such as lr=3e-4."
        ),
    ] = None,
    num_starts: Annotated[int | None, typer.Option(min=1, max=SPAN, help="Held-out start states.")] = None,
    name: Annotated[
        str, typer.Option(help="Of its folder, RUN/rllib/NAME; after the algorithm if absent.", show_default=False)
    ] = "",
    overrides: Overrides = None,
) -> None:
    """Train the base policy of a run by an algorithm of RLlib in the run's imagined world.

    The run needs its stages up to reward-model. The policy is evaluated in reality on the same held-out starts as the
    run's own, stands in RUN/rllib/NAME with its result, and in the run's report beside it.
    """
    folder, config = _run_of(source, out, overrides or [])
    prepare_ray(cluster_address(config))
    from cluster.rllib.imagined_training import Plan, parsed, spent_chunks
    from cluster.rllib.run_rllib import train_in_imagination

    chunks = -(-frames // config.rollout.chunk_length) if frames else spent_chunks(folder, config)
    plan = Plan(folder, config, algorithm.upper(), chunks, envs, runners, batch, perfect, parsed(training or []), name)
    result = train_in_imagination(plan, num_starts, make_console(stderr=True))
    _print_result(plan.label, result, folder)


def _print_result(label: str, result: dict[str, Any], folder: Path) -> None:
    rate = result["success"]
    make_console().print(
        f"{label}: {success_text(rate)} of {rate['num']} held-out starts after {result['frames']:,} frames, in "
        f"{result['folder']}\nreport: {folder / 'report' / 'index.html'}",
        soft_wrap=True,
        highlight=False,
    )


def tune(
    source: Source,
    space: Annotated[
        Path,
        typer.Option(
            metavar="FILE", parser=user_path, help="TOML: ranges of settings in \\[space], \\[search] says how."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", parser=user_path, help="Folder of the sweep.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was interrupted.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Go on even where the imagined world fails the gate; what is learned may then hold in imagination alone.",
        ),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Search settings: many runs, of which the worse stop early, or take over from the better (population-based training).

    Stages that no searched setting changes are run once and shared. Trials are compared by real success on the way (or by
    imagined success without it), placed by the table `placement`, and those that come to the end are evaluated. Ends with a table
    and a page.
    """
    from cluster.sweeps.space import read_space

    config, wanted = load_config(source, overrides or ()), read_space(space)
    prepare_ray(cluster_address(config))
    from cluster.sweeps.sweep import sweep

    found = sweep(config, wanted, out, resume=resume, force=force, console=make_console(stderr=True))
    _print_trials(found["trials"], list(wanted.ranges), out)
    if all(one["state"] == "failed" for one in found["trials"]):
        raise UserError(f"every trial failed; what each of them said is in {out / 'trials'}, in a file NAME.log")


def _print_trials(trials: list[dict[str, Any]], keys: list[str], out: Path) -> None:
    console, table = make_console(), Table("trial", *keys, "updates", "on the way", "real success", "")
    for one in trials:
        rate = one["final"]
        table.add_row(
            one["name"],
            *(escape(str(one["settings"].get(key, ""))) for key in keys),
            str(one["updates"]),
            "" if one["success"] is None else f"{one['success']:.1%}",
            success_text(rate) if rate else "",
            one["state"],
        )
    console.print(table)
    console.print(f"report: {out / 'report' / 'index.html'}", soft_wrap=True, highlight=False)


def _run_of(source: str, out: Path | None, overrides: list[str]) -> tuple[Path, Config]:
    """The folder of a run and its configuration, where the run is named or its configuration is."""
    named = user_path(source)
    if (named / CONFIG).is_file():
        if out is not None and out.resolve() != named.resolve():
            raise UserError(f"--out {out}: {source} is a run already; leave --out out")
        return named, overridden(read_config_json(named / CONFIG), overrides)
    config = load_config(source, overrides)
    folder = run_folder(out, config)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no run: there is no {CONFIG} in it; run the stages up to reward-model first")
    return folder, config
