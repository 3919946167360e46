"""`wmpo monitor`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import user_path

DEFAULT_FOLDER = Path("~/.cache/wmpo/prometheus")


def add_monitoring(app: typer.Typer) -> None:
    """Add `monitor` to the command line."""
    app.command()(monitor)


def monitor(
    folder: Annotated[
        Path, typer.Option(metavar="DIR", parser=user_path, help="Folder for Prometheus' data and log.")
    ] = DEFAULT_FOLDER,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prometheus, on 127.0.0.1.")] = 9090,
    prometheus: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=user_path, help="The Prometheus binary, if it is not on the PATH."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="A node of another machine, or a run outside Ray; may be repeated."),
    ] = None,
) -> None:
    """Monitor this machine's Ray clusters with Prometheus, and show how to open the Grafana board; stop with Ctrl-C."""
    from cluster.monitoring.server import monitor as watch

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        watch(folder, port, prometheus, target or (), typer.echo)
    except KeyboardInterrupt:
        typer.echo("Prometheus has ended")
    finally:
        signal.signal(signal.SIGTERM, before)
