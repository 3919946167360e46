"""Delivers weights from the learner to every replica: through the object store, or by broadcast in a fixed group.

The learner puts each version into the object store, in full and, depending on `weights.payload`, also compact. A
replica reports the version that it loaded; the caller compares it with `WeightPublisher.version` and sends the full
payload if they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple, Protocol

from actors.broadcast_group import GroupSpec, open_store
from actors.publisher_actor import WeightPublisherActor
from cluster.host.job import cluster_address
from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import Ref, Runtime
from cluster.runtimes.serial_runtime import SerialRuntime
from cluster.workers.actor_pool import Worker
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.learner_types import StepFacts
from wmpo_ray.core.types import WeightVersion


class LastStep(NamedTuple):
    """The delta of an update's last step, for workers that hold the steps before it."""

    facts: StepFacts
    delta: Ref


class Offer(NamedTuple):
    """A version of the weights, and the payloads that there are of it."""

    version: WeightVersion
    full: Ref
    compact: Ref | None = None
    last: LastStep | None = None


class WeightPublisher(Protocol):
    """Publishes weights. No method blocks on an actor."""

    @property
    def version(self) -> WeightVersion | None:
        """The newest version offered."""

    @property
    def full(self) -> Ref:
        """Its full payload."""

    def offer(self, offer: Offer) -> None:
        """Set the newest weights; called in the order of versions."""

    def deliver(self, workers: Sequence[Worker]) -> list[tuple[Worker, Ref]]:
        """Send the newest weights to workers; each reference resolves to the `WeightVersion` that was loaded.

        A reference raises WeightTransferError if only `send_full` helps. Calls of one caller keep their order: earlier
        calls of a worker run with the old weights, later ones with the new.
        """

    def send_full(self, worker: Worker) -> Ref:
        """Send the full payload to one worker through the object store: after it has joined, or after a failure."""

    def close(self) -> None: ...


class ObjectStorePublisher:
    """One copy in the object store, which every replica pulls; workers may come and go."""

    def __init__(self, runtime: Runtime, payload: str = "full"):
        self._runtime, self._payload = runtime, payload
        self._offer: Offer | None = None
        self._base = ""  # digest of the previous version, the base of a delta

    @property
    def version(self) -> WeightVersion | None:
        return self._offer.version if self._offer is not None else None

    @property
    def full(self) -> Ref:
        return self._offer.full if self._offer is not None else None

    def offer(self, offer: Offer) -> None:
        previous, self._offer = self.version, offer
        # A restored learner offers its version again and has no previous one to make a delta from.
        follows = previous is not None and offer.version.num_updates == previous.num_updates + 1
        self._base = previous.digest if previous is not None and follows else ""

    def deliver(self, workers: Sequence[Worker]) -> list[tuple[Worker, Ref]]:
        return [(worker, self._load(worker, self._payload_for([worker]))) for worker in workers]

    def send_full(self, worker: Worker) -> Ref:
        return self._load(worker, self.full)

    def close(self) -> None:
        """Nothing to close."""

    def _load(self, worker: Worker, payload: Ref) -> Ref:
        return self._runtime.call(worker.actor, "load_weights", payload)

    def _payload_for(self, workers: Sequence[Worker]) -> Ref:
        """The smallest payload that all of the workers can use."""
        offer = self._offer
        assert offer is not None
        if offer.compact is None or self._payload == "full":
            return offer.full
        if self._payload == "adapter":
            return offer.compact
        if self._base == "" or any(worker.digest != self._base for worker in workers):
            return offer.full
        if offer.last is not None and all(worker.staged == offer.last.facts.base for worker in workers):
            return offer.last.delta
        return offer.compact


class GroupPublisher(ObjectStorePublisher):
    """Broadcasts in a fixed group: one publisher process, which reads the object store, and all workers delivered to.

    A new group, with a new publisher process, is created at the first `deliver`, whenever the workers have changed, and
    after any `send_full`, the sign of a broken broadcast. The rendezvous store is in this process, so that it outlives
    all members and does not depend on a publisher that may be dead or stuck.
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
        self._sent: Ref = None  # kept: dropping the reference would cancel the call

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
    """The address at which members reach this process: loopback unless the cluster is remote."""
    if not cluster_address(config):
        return "127.0.0.1"
    import ray.util

    return ray.util.get_node_ip_address()


def make_publisher(config: Config, runtime: Runtime) -> WeightPublisher:
    """The publisher that `weights.transport` names; UserError for a broadcast transport with --serial."""
    if config.weights.transport == "object_store":
        return ObjectStorePublisher(runtime, config.weights.payload)
    if isinstance(runtime, SerialRuntime):
        raise UserError(
            f'weights.transport="{config.weights.transport}" broadcasts between processes and --serial has only one; '
            'set weights.transport="object_store"'
        )
    return GroupPublisher(runtime, config)
