"""The runtime that a run asks for."""

from __future__ import annotations

from cluster.runtimes.runtime import Runtime
from cluster.runtimes.serial_runtime import SerialRuntime


def start_runtime(serial: bool, address: str = "") -> Runtime:
    """This process alone, or the Ray cluster at `address` ("": one is started on this machine)."""
    if serial:
        return SerialRuntime()
    from cluster.runtimes.ray_runtime import RayRuntime  # a serial run does without the seconds that Ray's import takes

    return RayRuntime(address)
