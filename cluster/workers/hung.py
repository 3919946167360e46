"""When a worker counts as hung: it does not answer, makes no progress, or has a place and gets no process there."""

from __future__ import annotations

from cluster.runtimes.runtime import Runtime
from cluster.workers.actor_pool import Phase, Worker
from wmpo_ray.config.cluster import FaultsConfig


def problem_of(worker: Worker, faults: FaultsConfig, runtime: Runtime) -> str | None:
    """Why a worker counts as hung; None if it does not."""
    now = runtime.clock()
    if worker.phase is Phase.PLACING:
        return _unstarted(worker, faults, runtime)
    silent = now - (worker.asked_at or now)
    if silent > faults.heartbeat_timeout_s:
        limit = f"faults.heartbeat_timeout_s={faults.heartbeat_timeout_s:g}"
        return f"{worker.name} has not answered for {silent:.0f} s ({limit})"
    is_working = worker.task is not None or worker.loading or worker.phase is Phase.BUILDING
    if is_working and now - worker.moved_at > faults.stall_timeout_s:
        limit = f"faults.stall_timeout_s={faults.stall_timeout_s:g}"
        return f"{worker.name} has made no progress for {now - worker.moved_at:.0f} s ({limit})"
    return None


def _unstarted(worker: Worker, faults: FaultsConfig, runtime: Runtime) -> str | None:
    """A GCS that ends while a place is being reserved may call it reserved ever after, and nothing starts there.

    A place may be long in coming, where nodes have to be started, so it is asked about only once a timeout.
    """
    if runtime.clock() - worker.moved_at <= faults.start_timeout_s:
        return None
    if worker.has_place:
        limit = f"faults.start_timeout_s={faults.start_timeout_s:g}"
        return f"{worker.name} has a place and got no process there in {faults.start_timeout_s:g} s ({limit})"
    worker.has_place, worker.moved_at = runtime.has_place(worker.actor), runtime.clock()
    return None
