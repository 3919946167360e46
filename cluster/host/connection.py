"""Joining a Ray cluster: found and asked within seconds, where Ray itself would try for minutes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any

import grpc
import ray
from ray.exceptions import AuthenticationError

from cluster.host.ray_private import LateNodeError, address_from_environment, all_nodes_or_none, grpc_channel
from wmpo_ray.core.errors import UserError

PROBE_TIMEOUT_S = 5.0
STARTS = 3
KNOBS = "set --address, cluster.address or RAY_ADDRESS"


class NoClusterError(UserError):
    """No Ray cluster answers: there is none, or it is on its way back."""


def require_cluster(address: str) -> str:
    """The host:port of the cluster at `address`, which may be "auto". Raises NoClusterError where none answers."""
    try:
        found = address_from_environment(address) if address == "auto" else address
    except ConnectionError:
        raise NoClusterError(
            f'no Ray cluster runs on this machine, so "{address}" finds none; {KNOBS}, or "" to start one'
        ) from None
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise NoClusterError(f"nothing answers at {found} ({error}); {KNOBS}, or start the cluster") from None
    channel = grpc_channel(found)
    try:
        grpc.channel_ready_future(channel).result(PROBE_TIMEOUT_S)
    except grpc.FutureTimeoutError:
        raise NoClusterError(
            f"what answers at {found} is no Ray cluster: drivers need the port of its GCS, 6379 by default, and the same "
            f"TLS settings; {KNOBS}"
        ) from None
    finally:
        channel.close()
    return found


def start_here(**options: Any) -> None:
    """`ray.init` for a Ray on this machine alone, which ends with this process. Raises UserError as `start_nodes` does."""
    settings = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.WARNING} | options
    start_nodes(lambda: ray.init("local", **settings))


def start_nodes(start: Callable[[], Any]) -> None:
    """Call what starts nodes of Ray on this machine; again where one was late, and nothing of a failed try runs on.

    Ray waits 30 s for a node, which has to import its agents first, and a busy machine may take longer; by the second
    time they are in memory. Raises UserError after the third.
    """
    for _ in range(STARTS):
        try:
            with all_nodes_or_none():
                start()
        except LateNodeError:
            continue
        return
    raise UserError(
        f"Ray did not start on this machine: {STARTS} times a node was not there within 30 s; look at what else runs "
        "here and at Ray's logs in /tmp/ray, or do without Ray (--serial)"
    )


def connect(address: str, **options: Any) -> None:
    """`ray.init` for a cluster that is running. Raises UserError where it cannot be joined, with Ray's reason."""
    found = require_cluster(address)
    try:
        ray.init(address=found, log_to_driver=False, **options)
    except (ConnectionError, ValueError, AuthenticationError, RuntimeError) as error:  # RuntimeError: other versions
        reason = " ".join(str(error).split())
        raise UserError(
            f"the Ray cluster at {found} cannot be joined: {reason}; {KNOBS}, and RAY_AUTH_MODE=token with the cluster's "
            "token if it asks for one"
        ) from error
