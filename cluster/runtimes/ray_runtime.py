"""Actors as Ray actors.

Every actor runs in a host: a process that first reports its location and answers heartbeats, then constructs the actor.
This distinguishes an actor that is waiting for resources from one that is loading its models and one that hangs, and
makes errors of constructors visible: Ray's own restarts hide them.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.host.connection import connect, start_here
from cluster.host.ray_private import autoscaler_config, dashboard_url, draining_nodes
from cluster.host.security import prepare_ray
from cluster.runtimes.resources import Resources, ray_options
from cluster.runtimes.runtime import (
    ActorLostError,
    Answer,
    Beat,
    InputLostError,
    ProcessInfo,
    Ref,
    beat_of,
    measured,
    unwrapped,
)
from cluster.runtimes.spares import Spares
from wmpo_ray.model_files import held_models

LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    OutOfMemoryError,
    ActorUnschedulableError,
    ActorPlacementGroupRemoved,
)
BEING_RESERVED = ("PENDING", "PREPARED", "RESCHEDULING")  # states of a placement group
# Each has a thread of its own: heartbeats are answered, and calls beside others run, while the actor works.
HEARTBEAT, BESIDE = "heartbeat", "beside"


class Host:
    """The process of an actor."""

    def __init__(self) -> None:
        # Ray does not hide GPUs from actors that requested none; cluster.device = "auto" uses any visible GPU.
        if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._actor: Any = None
        self._problem: Exception | None = None

    def locate(self) -> ProcessInfo:
        return ProcessInfo(os.getpid(), ray.get_runtime_context().get_node_id())

    def build(self, blueprint: bytes) -> float:
        started = time.monotonic()
        try:
            cls, args = cloudpickle.loads(blueprint)  # imports libraries, which counts as build time
            self._actor = cls(*args)
        except Exception as error:
            self._problem = error
            raise
        held_models.let_go()  # what this process loaded as a spare and the actor has no use for
        return time.monotonic() - started

    def beat(self) -> Beat:
        return beat_of(self._actor)

    def tell(self, method: str, *args: Any) -> None:
        if self._actor is not None:
            getattr(self._actor, method)(*args)

    def beside(self, method: str, args: list[Any]) -> Any:
        """`args` come in a list, so that the wait for those that are on their way holds up no other call."""
        values = [ray.get(arg) if isinstance(arg, ray.ObjectRef) else arg for arg in args]
        return getattr(self._actor, method)(*map(unwrapped, values))

    def runtime_env(self) -> str:
        return ray.get_runtime_context().get_runtime_env_string()

    def call(self, method: str, num_returns: int, *args: Any) -> Any:
        if self._problem is not None:
            raise self._problem
        parts = measured(lambda: getattr(self._actor, method)(*map(unwrapped, args)), num_returns)
        return parts if num_returns > 1 else parts[0]


@dataclass(eq=False)
class RayActor:
    handle: Any
    cls: type
    args: tuple
    resources: Resources
    is_built: bool = False

    def task(self, method: str) -> str:
        """The name of a call on Ray's dashboard."""
        return f"{self.cls.__name__}.{method}"


class RayRuntime:
    """On a running cluster, or on one started here and stopped at the end."""

    def __init__(self, address: str = ""):
        self._started_here = not ray.is_initialized()
        if self._started_here:
            prepare_ray(address)
            before = signal.getsignal(signal.SIGTERM)
            if address:
                connect(address, logging_level=logging.WARNING)
            else:
                start_here()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's own handler would exit with another code
        self._node = ray.get_runtime_context().get_node_id()
        self._spares: Spares | None = None

    @property
    def available(self) -> dict[str, float]:
        return ray.cluster_resources()

    @property
    def doors(self) -> dict[str, Any]:
        dashboard = dashboard_url()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        metrics = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes]
        return {"dashboard": f"http://{dashboard}" if dashboard else "", "metrics": metrics}

    @property
    def can_grow(self) -> bool:
        """Whether an autoscaler adds nodes on demand."""
        config = autoscaler_config()
        return config is not None and len(config.node_group_configs) > 0

    def clock(self) -> float:
        return time.monotonic()

    def spawn(self, cls: type, *args: Any, resources: Resources, name: str) -> RayActor:
        # The dashboard shows the name of the class.
        host = ray.remote(concurrency_groups={HEARTBEAT: 1, BESIDE: 1})(type(cls.__name__, (Host,), {}))
        spares, asked = None if resources.runtime_env else self._spares, resources
        if spares is not None:
            resources = resources._replace(runtime_env=spares.runtime_env)
        # The driver restarts actors: Ray's own restart would serve the initial weights again.
        handle = host.options(max_restarts=0, **ray_options(resources)).remote()
        if spares is not None:
            spares.started(handle.runtime_env.options(concurrency_group=HEARTBEAT).remote)
        return RayActor(handle, cls, args, asked)

    def keep_spares(self, spares: Spares | None) -> None:
        """From now on actors begin in spare processes where there are some; None: no longer."""
        if self._spares is not None:
            self._spares.stop()
        self._spares = spares

    def locate(self, actor: RayActor) -> Ref:
        return actor.handle.locate.remote()

    def has_place(self, actor: RayActor) -> bool:
        if actor.resources.runtime_env:
            return False  # its packages are installed first, however long that takes
        if actor.resources.bundle is None:
            return actor.resources == Resources()
        group, _ = actor.resources.bundle
        return placement_group_table(group).get("state") not in BEING_RESERVED  # nor one that the head does not know

    def build(self, actor: RayActor) -> Ref:
        actor.is_built = True
        return actor.handle.build.options(name=actor.task("__init__")).remote(
            cloudpickle.dumps((actor.cls, actor.args))
        )

    def beat(self, actor: RayActor) -> Ref:
        return actor.handle.beat.options(concurrency_group=HEARTBEAT).remote()

    def call(self, actor: RayActor, method: str, *args: Any, num_returns: int = 1) -> Any:
        if not actor.is_built:
            self.build(actor)  # calls of one caller keep their order
        call = actor.handle.call.options(num_returns=num_returns, name=actor.task(method))
        return call.remote(method, num_returns, *args)

    def tell(self, actor: RayActor, method: str, *args: Any) -> None:
        actor.handle.tell.options(concurrency_group=HEARTBEAT).remote(method, *args)

    def beside(self, actor: RayActor, method: str, *args: Any) -> Ref:
        call = actor.handle.beside.options(concurrency_group=BESIDE, name=actor.task(method))
        return call.remote(method, list(args))

    def wait(self, refs: list[Ref], timeout_s: float | None = None) -> list[Ref]:
        if not refs:  # ray.wait rejects an empty list: all workers are in a backoff before the next start
            time.sleep(timeout_s or 0.0)
            return []
        ready, rest = ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        return ready

    def get(self, ref: Ref) -> Any:
        return unwrapped(self._read(ref))

    def answer(self, ref: Ref) -> Answer:
        value = self._read(ref)
        return value if isinstance(value, Answer) else Answer(value)

    def _read(self, ref: Ref) -> Any:
        try:
            return ray.get(ref)
        except LOST as error:
            raise ActorLostError(str(error)) from error
        except ObjectLostError as error:
            raise InputLostError(str(error)) from error
        except RayTaskError as error:
            if isinstance(
                error.cause, (ObjectLostError, *LOST)
            ):  # the loss is that of an argument, not of the called actor
                raise InputLostError(str(error.cause)) from error
            # The cause is what the code raised; Ray's wrapper adds its own frames to the message.
            raise error.cause from error

    def put(self, value: Any) -> Ref:
        return ray.put(value)

    def kill(self, actor: RayActor, process: ProcessInfo | None = None) -> None:
        ray.kill(actor.handle)
        if process is None:
            return
        # A stopped process does not react to ray.kill: it would keep its memory and its GPU.
        if process.node == self._node:
            end_process(process.pid)
        else:
            there = NodeAffinitySchedulingStrategy(process.node, soft=False)
            ray.remote(end_process).options(num_cpus=0, scheduling_strategy=there).remote(process.pid)

    def stop(self, actor: RayActor) -> None:
        ray.kill(actor.handle)

    def draining_nodes(self) -> dict[str, float]:
        now = time.time()
        return {node: deadline_ms / 1e3 - now for node, deadline_ms in draining_nodes().items()}

    def shutdown(self) -> None:
        self.keep_spares(None)
        if self._started_here:
            ray.shutdown()


def end_process(pid: int) -> None:
    """Kill a Ray worker; a different process that has reused the pid is left alone."""
    try:
        if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass
