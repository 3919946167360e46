"""What is on this machine is reached directly, whatever proxy is set for the rest of the world."""

from __future__ import annotations

import os

LOOPBACK = ("localhost", "127.0.0.1", "::1")
# urllib and requests read the first in either spelling, gRPC the lower-case one, or its own if that is set.
EXCEPTIONS = ("no_proxy", "NO_PROXY")
GRPC_EXCEPTIONS = "no_grpc_proxy"


def reach_loopback_directly() -> None:
    """Except loopback addresses from every proxy, for this process and those that it starts; the user's own stay excepted.

    Has to come before Ray starts: its processes inherit the environment, and a proxy would answer for the dashboard.
    """
    both = ",".join(os.environ.get(name, "") for name in EXCEPTIONS)  # one spelling set alone speaks for both
    for name in EXCEPTIONS:
        os.environ[name] = _with_loopback(both)
    if GRPC_EXCEPTIONS in os.environ:
        os.environ[GRPC_EXCEPTIONS] = _with_loopback(os.environ[GRPC_EXCEPTIONS])


def _with_loopback(exceptions: str) -> str:
    """Each host once, in the order given; "*", which excepts everything, has to stand alone."""
    hosts = [host.strip() for host in exceptions.split(",") if host.strip()]
    return "*" if "*" in hosts else ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
