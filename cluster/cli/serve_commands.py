"""`wmpo serve`, `wmpo simulator` and `wmpo label`: what robots and simulators in other processes need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import Overrides, Source, user_path
from cluster.host.job import cluster_address
from cluster.host.security import prepare_ray
from wmpo_client.refusals import ClientError
from wmpo_client.serving.locked_server import Lock
from wmpo_client.token_file import require_token
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.console import make_console
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


Served = Annotated[
    Path, typer.Argument(metavar="RUN|FOLDER", parser=user_path, help="A run, or the folder of a policy.")
]
Checkpoint = Annotated[
    str, typer.Option(metavar="latest|N", help="Of a run: its newest policy, or that after N updates.")
]
Watch = Annotated[bool, typer.Option("--watch", help="Take new weights as the run makes them.")]
Replicas = Annotated[int, typer.Option(min=1, help="Copies of the policy; two or more are placed by Ray.")]
MadeFor = Annotated[
    str | None,
    typer.Option(metavar="PRESET|FILE", help="What a policy's folder was made for; a run knows it."),
]
Episodes = Annotated[
    Path | None,
    typer.Option(metavar="DIR", parser=user_path, help="Where episodes of robots go; RUN/robot if absent."),
]
Temperature = Annotated[float | None, typer.Option(help="Of the actions; else evaluation.temperature.")]
MaxBatch = Annotated[int, typer.Option(min=1, help="Robots that are decided on together.")]
MaxWait = Annotated[float, typer.Option(min=0, help="For which a robot may wait for others.")]
Openpi = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Answer openpi's WebSocket protocol there too; empty: not.")
]
MetricsPort = Annotated[int, typer.Option(min=-1, help="Prometheus' port on 127.0.0.1; 0: free, -1: none.")]


def add_serving(app: typer.Typer) -> None:
    app.command()(serve)
    app.command()(simulator)
    app.command()(label)


def make_lock(certificate: Path | None, key: Path | None, client_ca: Path | None) -> Lock:
    """With the token of this user, which is made where there is none."""
    return Lock(require_token(), certificate, key, client_ca)


def serve(
    folder: Served,
    checkpoint: Checkpoint = "latest",
    watch: Watch = False,
    listen: Listen = "127.0.0.1:7410",
    replicas: Replicas = 1,
    config: MadeFor = None,
    episodes: Episodes = None,
    temperature: Temperature = None,
    max_batch: MaxBatch = 64,
    max_wait_ms: MaxWait = 5.0,
    metrics_port: MetricsPort = -1,
    openpi: Openpi = "",
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    client_ca: ClientCA = None,
    overrides: Overrides = None,
) -> None:
    """Serve a policy to robots, and take the episodes that they send; stop with Ctrl-C."""
    from cluster.serving.served_folder import choose_weights

    settings, find = choose_weights(folder, checkpoint, config, overrides or ())
    wanted = settings.evaluation.temperature if temperature is None else temperature
    kept = episodes or (folder / "robot" if config is None else None)
    with _ray_for(settings, replicas), _explained():
        from cluster.serving.policy_server import PolicyServer, ServingOptions, serve_until_signal

        lock = make_lock(tls_certificate, tls_key, client_ca)
        options = ServingOptions(
            listen, lock, wanted, replicas, max_batch=max_batch, max_wait_s=max_wait_ms / 1000, openpi=openpi
        )
        serve_until_signal(PolicyServer(settings, find, options), kept, watch, metrics_port, typer.echo)


@contextmanager
def _ray_for(config: Config, replicas: int) -> Iterator[None]:
    """Ray for as long as replicas need it: the cluster of the configuration, or one of this machine."""
    if replicas == 1:
        yield
        return
    prepare_ray(cluster_address(config))
    from cluster.runtimes.ray_runtime import RayRuntime

    runtime = RayRuntime(cluster_address(config))
    try:
        yield
    finally:
        runtime.shutdown()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise UserError(str(error)) from error


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
    with _explained():
        serve(
            lambda: make_environment(config.environment),
            listen,
            environment_facts(config.environment).instructions,
            make_lock(tls_certificate, tls_key, client_ca),
            config.environment.model_dump(mode="json"),
            lambda port: typer.echo(f"the simulator ({config.environment.kind}) listens on {host}:{port}"),
        )


def label(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", parser=user_path, help="Where the episodes of robots are: RUN/robot.")
    ],
    page: Annotated[bool, typer.Option("--page", help="In the browser instead of the terminal.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page, on 127.0.0.1; 0: a free one.")] = 0,
    reward_model: Annotated[
        Path | None,
        typer.Option(metavar="RUN", parser=user_path, help="Show what the reward model of this run says of each."),
    ] = None,
    sure: Annotated[
        float, typer.Option(min=0.5, help="Keep its verdict without asking from this probability on; above 1: never.")
    ] = 2.0,
) -> None:
    """Watch episodes without a verdict, and give one: y, n, r to see it again, u to undo, s to skip, q to end."""
    from cluster.cli.labelling import label_episodes
    from cluster.serving.label_page import serve_page
    from cluster.serving.label_session import EpisodeJudge, Labelling

    if reward_model is None and sure <= 1:
        raise UserError(f"--sure {sure:g} needs --reward-model RUN, whose verdicts it keeps")
    labelling = Labelling(folder, typer.echo, None if reward_model is None else EpisodeJudge(reward_model))
    if sure <= 1:
        typer.echo(f"{labelling.label_what_is_sure(sure)} labelled by the reward model")
    if page:
        try:
            serve_page(labelling, port, typer.echo)
        except KeyboardInterrupt:
            return
    else:
        label_episodes(labelling, make_console())
