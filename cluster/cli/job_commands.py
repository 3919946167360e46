"""Commands for clusters: `submit` a run to one, or start a small one on this machine."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import Overrides, Rounds, WorkingDir, with_rounds
from cluster.host.job import RUNS
from cluster.host.security import prepare_ray
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import UserError

DASHBOARD = "http://127.0.0.1:8265"

Source = Annotated[
    str, typer.Argument(metavar="PRESET|FILE", help="A preset, or a TOML file in the working directory.")
]


def add_jobs(app: typer.Typer) -> None:
    app.command()(submit)
    app.command()(cluster)


def submit(
    source: Source,
    address: Annotated[str, typer.Option(help="The cluster's dashboard.", envvar="RAY_API_SERVER_ADDRESS")] = DASHBOARD,
    working_dir: WorkingDir = Path("."),
    out: Annotated[str | None, typer.Option("--out", help="Folder of the run on the cluster's shared storage.")] = None,
    overrides: Overrides = None,
    rounds: Rounds = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the job's log until it ends.")] = True,
) -> None:
    """Submit `wmpo run` to a running cluster; submitted again after a stop, it resumes."""
    settings = with_rounds(overrides, rounds)
    config = load_config(source, settings)  # errors are reported here, not in the job's log
    prepare_ray(address)
    from cluster.host.preflight import preflight_submission
    from cluster.host.submission import connect

    preflight_submission(config)

    command = ["python", "-m", "wmpo_ray", "run", source, *(["--out", out] if out else [])]
    command += [part for setting in settings for part in ("--set", setting)]
    runs = {RUNS: os.environ[RUNS]} if os.environ.get(RUNS) else {}
    _run_job(connect(address), command, working_dir, runs, wait)


def cluster(
    workers: Annotated[int, typer.Option(min=1, help="Worker nodes beside the head.")] = 2,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the dashboard; 0: any.")] = 8265,
    run: Annotated[str | None, typer.Option("--submit", metavar="PRESET", help="Submit this run, then end.")] = None,
    working_dir: WorkingDir = Path("."),
    overrides: Overrides = None,
) -> None:
    """Start a Ray cluster of processes on this machine, with a token and on 127.0.0.1 only, until Ctrl-C."""
    prepare_ray("")
    from cluster.host.local_cluster import LocalCluster
    from cluster.host.security import token_path

    with LocalCluster(workers, dashboard_port=port) as local:
        typer.echo(f"dashboard: {local.dashboard}   (it asks for the token in {token_path()})", err=True)
        typer.echo(f"address:   {local.address}", err=True)
        typer.echo(f"metrics:   RAY_TMPDIR={local.temp_dir.parent} wmpo monitor", err=True)
        if run is None:
            typer.echo("Ctrl-C ends it", err=True)
            threading.Event().wait()
            return
        from cluster.host.submission import connect

        runs = Path(os.environ.get(RUNS) or "runs").absolute()
        command = ["python", "-m", "wmpo_ray", "run", run]
        command += [part for override in overrides or () for part in ("--set", override)]
        _run_job(connect(local.dashboard), command, working_dir, {RUNS: str(runs)}, wait=True)


def _run_job(client, command: list[str], working_dir: Path, environment: dict[str, str], wait: bool) -> None:
    from cluster.host.submission import follow, submit

    job = submit(client, command, working_dir, environment)
    address = client.get_address()
    typer.echo(f"job: {job}   (ray job stop --address {address} {job})", err=True)
    if not wait:
        return

    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    if not follow(client, job, show):
        raise UserError(f"the job {job} did not succeed; its log is above, and with `ray job logs {job}`")
