"""The runtime that a run asks for."""

from __future__ import annotations

import logging
import time

from cluster.events.event_log import emit
from cluster.runtimes.runtime import Runtime
from cluster.runtimes.serial_runtime import SerialRuntime
from wmpo_ray.core.errors import UserError

PROBE_EVERY_S = 0.5


def start_runtime(serial: bool, address: str = "", timeout_s: float = 0.0) -> Runtime:
    """This process alone, or the Ray cluster at `address`, awaited for `timeout_s` ("": one is started here)."""
    if serial:
        return SerialRuntime()
    from cluster.runtimes.ray_runtime import RayRuntime  # a serial run does without the seconds that Ray's import takes

    if address and timeout_s:
        await_cluster(address, timeout_s)
    return RayRuntime(address)


def await_cluster(address: str, timeout_s: float) -> None:
    """Returns once a Ray cluster answers at `address`: it may be on its way back, as after a restart of its head.

    Raises UserError where none does within `timeout_s`.
    """
    from cluster.host.connection import require_cluster  # imports Ray

    ends_at, is_told = time.monotonic() + timeout_s, False
    while True:
        try:
            require_cluster(address)
            return
        except UserError as error:
            if time.monotonic() >= ends_at:
                raise UserError(f"{error} (waited {timeout_s:g} s: faults.cluster_timeout_s)") from None
            if not is_told:
                text = f"{error}; waiting for it up to {timeout_s:g} s (faults.cluster_timeout_s)"
                emit("cluster.awaited", text, logging.WARNING, address=address)
                is_told = True
        time.sleep(PROBE_EVERY_S)
