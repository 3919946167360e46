"""Weights from the learner to every replica: through the object store, or by broadcast in a fixed group.

The learner leaves each version in the object store, full and, where `weights.payload` asks for it, compact. What a
replica then holds it says itself; whoever called compares that with `WeightPublisher.version` and sends the full payload
where the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol

from actors.broadcast_group import GroupSpec, open_store
from actors.publisher_actor import WeightPublisherActor
from cluster.host.job import cluster_address
from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import Ref, Runtime
from cluster.runtimes.serial_runtime import SerialRuntime
from cluster.workers.actor_pool import Worker
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import WeightVersion


class WeightPublisher(Protocol):
    """Nothing here waits for an actor."""

    @property
    def version(self) -> WeightVersion | None:
        """The newest version offered."""

    @property
    def full(self) -> Ref:
        """The full payload of it."""

    def offer(self, version: WeightVersion, full: Ref, compact: Ref | None) -> None:
        """Take note of the newest weights, in the order of versions."""

    def deliver(self, workers: Sequence[Worker]) -> list[tuple[Worker, Ref]]:
        """Send the newest weights to workers; each reference resolves to the `WeightVersion` that was loaded.

        Raises, when it is resolved, WeightTransferError where only `send_full` helps. Calls of one caller keep their
        order: what was asked of a worker before still runs under the old weights, what is asked from now on under the
        new.
        """

    def send_full(self, worker: Worker) -> Ref:
        """The same for one worker, in full and through the object store: one that has just come, or went wrong."""

    def close(self) -> None: ...


class ObjectStorePublisher:
    """One copy in the object store, which every replica pulls; any set of workers will do."""

    def __init__(self, runtime: Runtime, payload: str = "full"):
        self._runtime, self._payload = runtime, payload
        self._version: WeightVersion | None = None
        self._base = ""  # digest of the version before, from which a delta starts
        self._full: Ref = None
        self._compact: Ref | None = None

    @property
    def version(self) -> WeightVersion | None:
        return self._version

    @property
    def full(self) -> Ref:
        return self._full

    def offer(self, version: WeightVersion, full: Ref, compact: Ref | None) -> None:
        previous, self._version = self._version, version
        self._full, self._compact = full, compact
        # A learner that was restored offers its version once more, and knows no other to make a delta from.
        follows = previous is not None and version.num_updates == previous.num_updates + 1
        self._base = previous.digest if previous is not None and follows else ""

    def deliver(self, workers: Sequence[Worker]) -> list[tuple[Worker, Ref]]:
        return [(worker, self._load(worker, self._payload_for([worker]))) for worker in workers]

    def send_full(self, worker: Worker) -> Ref:
        return self._load(worker, self._full)

    def close(self) -> None:
        """Nothing of its own to end."""

    def _load(self, worker: Worker, payload: Ref) -> Ref:
        return self._runtime.call(worker.actor, "load_weights", payload)

    def _payload_for(self, workers: Sequence[Worker]) -> Ref:
        """The smallest payload that all of them can use."""
        if self._compact is None or self._payload == "full":
            return self._full
        is_usable = self._payload == "adapter" or (
            self._base != "" and all(worker.digest == self._base for worker in workers)
        )
        return self._compact if is_usable else self._full


class GroupPublisher(ObjectStorePublisher):
    """Broadcasts in a fixed group: one publisher process, which reads the object store, and all workers delivered to.

    A new group, with a new publisher process, is made at the first `deliver`, whenever the workers are others than last
    time, and after any `send_full`: that is how a broken broadcast shows. The store where members find each other is in
    this process, so that it outlives them all and nothing needs to be asked of a publisher that may be dead or stuck.
    A broadcast waits for its slowest worker: `weights.timeout_s` must be longer than a request.
    """

    def __init__(self, runtime: Runtime, config: Config):
        super().__init__(runtime, config.weights.payload)
        self._config = config
        self._host = _own_address(config)
        self._store, self._port = open_store(self._host)
        self._generations = count(1)
        self._members: tuple[tuple[int, int], ...] = ()
        self._group: GroupSpec | None = None
        self._publisher: Any = None
        self._sent: Ref = None  # held: a reference that is dropped ends its call

    def deliver(self, workers: Sequence[Worker]) -> list[tuple[Worker, Ref]]:
        if not workers:
            return []
        members = tuple((worker.index, worker.epoch) for worker in workers)
        if self._group is None or members != self._members:
            self._rebuild(members)
        self._sent = self._runtime.call(self._publisher, "broadcast", self._payload_for(workers))
        return [
            (worker, self._runtime.call(worker.actor, "receive_broadcast", self._group, rank))
            for rank, worker in enumerate(workers, start=1)
        ]

    def send_full(self, worker: Worker) -> Ref:
        self._group = None
        return super().send_full(worker)

    def close(self) -> None:
        if self._publisher is not None:
            self._runtime.kill(self._publisher)
            self._publisher = None

    def _rebuild(self, members: tuple[tuple[int, int], ...]) -> None:
        self.close()
        weights = self._config.weights
        assert weights.transport != "object_store"
        self._group = GroupSpec(
            next(self._generations), self._host, self._port, len(members) + 1, weights.transport, weights.timeout_s
        )
        self._members = members
        self._publisher = self._runtime.spawn(
            WeightPublisherActor,
            self._group,
            self._config.cluster.threads_per_process,
            resources=Resources(num_gpus=1.0 if weights.transport == "nccl" else 0.0),
            name=f"weight-publisher-{self._group.generation}",
        )
        self._runtime.build(self._publisher)


def _own_address(config: Config) -> str:
    """Where the members find this process; nobody else does unless the cluster is a real one."""
    if not cluster_address(config):
        return "127.0.0.1"
    import ray.util

    return ray.util.get_node_ip_address()


def make_publisher(config: Config, runtime: Runtime) -> WeightPublisher:
    """The publisher that `weights.transport` names; UserError for a group without processes of its own."""
    if config.weights.transport == "object_store":
        return ObjectStorePublisher(runtime, config.weights.payload)
    if isinstance(runtime, SerialRuntime):
        raise UserError(
            f'weights.transport="{config.weights.transport}" broadcasts between processes and --serial has only one; '
            'set weights.transport="object_store"'
        )
    return GroupPublisher(runtime, config)
