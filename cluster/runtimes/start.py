"""The runtime that a run asks for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from cluster.events.event_log import emit
from cluster.runtimes.runtime import Runtime
from cluster.runtimes.serial_runtime import SerialRuntime

PROBE_EVERY_S = 0.5
T = TypeVar("T")


def start_runtime(serial: bool, address: str = "", timeout_s: float = 0.0) -> Runtime:
    """This process alone, or the Ray cluster at `address`, awaited for `timeout_s` ("": one is started here)."""
    if serial:
        return SerialRuntime()
    from cluster.runtimes.ray_runtime import RayRuntime  # a serial run does without the seconds that Ray's import takes

    return patiently(lambda: RayRuntime(address), timeout_s)


def await_cluster(address: str, timeout_s: float) -> None:
    """Returns once a Ray cluster answers at `address`. Raises NoClusterError where none does within `timeout_s`."""
    from cluster.host.connection import require_cluster  # imports Ray

    patiently(lambda: require_cluster(address), timeout_s)


def patiently(ask: Callable[[], T], timeout_s: float) -> T:
    """What `ask` says of a cluster that may be on its way back, as after a restart of its head: it is asked again.

    Raises NoClusterError where none answers within `timeout_s`.
    """
    from cluster.host.connection import NoClusterError  # imports Ray

    ends_at, is_told = time.monotonic() + timeout_s, False
    while True:
        try:
            return ask()
        except NoClusterError as error:
            if not timeout_s:
                raise
            if time.monotonic() >= ends_at:
                raise NoClusterError(f"{error} (waited {timeout_s:g} s: faults.cluster_timeout_s)") from None
            if not is_told:
                text = f"{error}; waiting for it up to {timeout_s:g} s (faults.cluster_timeout_s)"
                emit("cluster.awaited", text, logging.WARNING)
                is_told = True
        time.sleep(PROBE_EVERY_S)
