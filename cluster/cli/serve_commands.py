"""`wmpo simulator`: an environment of a configuration, served to other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import Overrides, Source, user_path
from wmpo_client.refusals import ClientError
from wmpo_client.serving.locked_server import Lock
from wmpo_client.token_file import require_token
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import UserError

Listen = Annotated[str, typer.Option(metavar="HOST:PORT", help="Port 0: a free one. Beyond 127.0.0.1 only with TLS.")]
Certificate = Annotated[
    Path | None, typer.Option(metavar="FILE", parser=user_path, help="Certificate of this server, for TLS.")
]
Key = Annotated[Path | None, typer.Option(metavar="FILE", parser=user_path, help="Key of that certificate.")]
ClientCA = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", parser=user_path, help="Authority whose certificate every client has to show (mutual TLS)."
    ),
]


def add_serving(app: typer.Typer) -> None:
    app.command()(simulator)


def make_lock(certificate: Path | None, key: Path | None, client_ca: Path | None) -> Lock:
    """With the token of this user, which is made where there is none."""
    return Lock(require_token(), certificate, key, client_ca)


def simulator(
    source: Source,
    listen: Listen = "127.0.0.1:7411",
    overrides: Overrides = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    client_ca: ClientCA = None,
) -> None:
    """Serve the environment of a configuration: to `environment.kind = "remote"`, and to robot programs; stop with Ctrl-C."""
    config = load_config(source, overrides or ())
    from wmpo_client.serving.environment_server import serve
    from wmpo_ray.environments.facts import environment_facts
    from wmpo_ray.registry import check_kinds, make_environment

    check_kinds(config)
    host = listen.rpartition(":")[0]
    try:
        serve(
            lambda: make_environment(config.environment),
            listen,
            environment_facts(config.environment).instructions,
            make_lock(tls_certificate, tls_key, client_ca),
            config.environment.model_dump(mode="json"),
            lambda port: typer.echo(f"the simulator ({config.environment.kind}) listens on {host}:{port}"),
        )
    except ClientError as error:
        raise UserError(str(error)) from error
