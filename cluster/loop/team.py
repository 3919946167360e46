"""The actors of a training run: one pool per role, and the delivery of weights to rollout workers."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from cluster.events.event_log import emit
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.runtime import ActorLostError, InputLostError, Ref, Runtime
from cluster.runtimes.spares import Spares, make_spares
from cluster.weights.delivery import Offer, make_publisher
from cluster.workers.actor_pool import ActorPool, Worker
from cluster.workers.crew import Crew
from cluster.workers.elasticity import Autoscaler, WorkerTargets
from cluster.workers.learner_group import LearnerGroup, check_ranks
from cluster.workers.placement import PlacementBook, Reservation, bundles_for, check_placement
from cluster.workers.telemetry import Telemetry
from wmpo_ray.config.roles import Role, roles_of, rollout_role
from wmpo_ray.config.run import Config
from wmpo_ray.core.types import WeightVersion

NODES_EVERY_S = 2.0  # interval between checks for draining nodes
HAND_BACK_S = 10.0  # a worker's task is reassigned this long before its node is gone
MAX_MISMATCHES = 3  # how often weights may arrive damaged at one replica before it is replaced


@dataclass(frozen=True)
class ModelPaths:
    """Folders that every actor reads its models from."""

    policy: Path
    world_model: Path
    verifier: Path | None
    reward_model: Path
    checkpoints: Path

    @property
    def by_name(self) -> dict[str, str]:
        """The folders of models that there are, by their names in `Role.models`."""
        return {name: str(path) for name, path in vars(self).items() if path is not None}

    def of(self, role: Role) -> tuple[str | None, ...]:
        """The folders that a role's actors are constructed with."""
        return tuple(str(path) if (path := getattr(self, name)) else None for name in role.models)


def actor_class(role: Role) -> Any:
    """The class that plays a role."""
    module, name = role.actor.split(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class WeightsLoaded:
    worker: Worker
    version: WeightVersion


class Team:
    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        paths: ModelPaths,
        telemetry: Telemetry | None = None,
    ):
        check_placement(config, runtime.available, isinstance(runtime, RayRuntime) and runtime.can_grow)
        self.config, self.runtime, self.paths = config, runtime, paths
        self.telemetry = telemetry or Telemetry()
        self.publisher = make_publisher(config, runtime)
        self.are_weights_lost = False  # the node that held them is lost
        self._is_new = False
        self._nodes_checked_at = -math.inf
        self.spares: Spares | None = None
        if isinstance(runtime, RayRuntime):
            self.spares = make_spares(config, paths.by_name)
            runtime.keep_spares(self.spares)
        self.crew = Crew(runtime, config.faults, self.telemetry)
        self.book = PlacementBook(config, Reservation if isinstance(runtime, RayRuntime) else None)
        self.autoscaler = Autoscaler() if isinstance(runtime, RayRuntime) else None
        self.rates = WorkerTargets(config)
        self._requested: dict[str, int] | None = None
        first = self.rates.targets()
        for role in roles_of(config):
            self._add_learner(role) if role.is_single else self._add(role, first.get(role.name, role.bounds(config)[0]))

    def _add(self, role: Role, size: int) -> None:
        folders = self.paths.of(role)

        def spawn(index: int) -> Any:
            place = self.book.place(role.name, index)
            return self.runtime.spawn(
                actor_class(role), self.config, *folders, resources=place, name=f"{role.name}-{index}"
            )

        def release(index: int) -> None:
            self.book.release(role.name, index)

        pool = ActorPool(self.runtime, role.name, size, self.config.faults, spawn, release)
        self.crew.pools[role.name] = pool

    def _add_learner(self, role: Role) -> None:
        """One worker, however many ranks it has: they start and stop with the first."""
        check_ranks(self.config, serial=not isinstance(self.runtime, RayRuntime))
        ranks = range(self.config.cluster.learner_ranks)
        cls, folders = actor_class(role), self.paths.of(role)

        def spawn(index: int) -> Any:
            first, *others = [self.book.place("learner", rank) for rank in ranks]
            if not others:
                return self.runtime.spawn(cls, self.config, *folders, resources=first, name="learner-0")
            args = (self.config, cls, *folders, others)
            return self.runtime.spawn(LearnerGroup, *args, resources=first, name="learner-0")

        def release(index: int) -> None:
            for rank in ranks:
                self.book.release("learner", rank)

        pool = ActorPool(self.runtime, "learner", 1, self.config.faults, spawn, release, is_single=True)
        self.crew.pools["learner"] = pool

    @property
    def replicas(self) -> ActorPool:
        """Workers that make rollouts and therefore need the newest weights."""
        return self.crew.pools[rollout_role(self.config)]

    # -- weights -------------------------------------------------------------------------------------------------

    def offer(self, offer: Offer) -> None:
        """Publish weights: rollouts use them from now on."""
        version, last = offer.version, offer.last
        self.publisher.offer(offer)
        self._is_new, self.are_weights_lost = True, False
        self.telemetry.offered(version)
        facts: dict[str, Any] = {"version": version.num_updates, "weights": version.digest}
        if last is not None:
            sizes = {"last": last.facts.num_bytes, "steps": last.facts.total_bytes, "update": last.facts.update_bytes}
            facts |= {f"{name}_bytes": size for name, size in sizes.items()}
        emit("weights.offered", f"weights of update {version.num_updates}", logging.DEBUG, **facts)

    def deliver(self) -> None:
        """Send the offered weights to every rollout worker that neither has them nor is loading them."""
        version = self.publisher.version
        if version is None:
            return
        behind = [w for w in self.replicas.ready if version.digest not in (w.digest, w.loading)]
        if self._is_new and behind:
            self._is_new = False
            for worker, ref in self.publisher.deliver(behind):
                self._watch(worker, ref, version)
        else:  # workers that have just joined
            for worker in behind:
                self._watch(worker, self.publisher.send_full(worker), version)

    def _watch(self, worker: Worker, ref: Ref, version: WeightVersion) -> None:
        worker.loading, worker.moved_at = version.digest, self.runtime.clock()
        self.crew.watch(
            ref,
            worker,
            lambda loaded: WeightsLoaded(worker, loaded),
            lambda error: self._not_loaded(worker, version, error),
            lambda work: self.telemetry.worked(worker, "load_weights", work, version.num_updates, version.num_updates),
        )

    def loaded(self, event: WeightsLoaded) -> None:
        """A replica reports its weights; it goes into service once they are the offered ones."""
        worker, offered = event.worker, self.publisher.version
        assert offered is not None
        worker.digest, worker.staged = event.version.digest, ""
        if worker.digest == offered.digest:
            worker.loading, worker.num_mismatches, worker.version = "", 0, offered.num_updates
            self.crew.serves(worker)
            if all(other.digest == offered.digest for other in self.replicas.ready):
                self.telemetry.arrived()
                if self.spares is not None:
                    self.spares.begin()
        elif event.version.num_updates == offered.num_updates:
            self._not_loaded(
                worker, offered, RuntimeError(f"it has weights {worker.digest} instead of {offered.digest}")
            )
        elif worker.loading != offered.digest:  # newer weights were offered since and have not been sent yet
            worker.loading = ""

    def _not_loaded(self, worker: Worker, version: WeightVersion, error: Exception) -> None:
        """Resend weights that did not arrive, in full."""
        worker.num_mismatches += 1
        if isinstance(error, ActorLostError) or worker.num_mismatches > MAX_MISMATCHES:
            self.crew.fail(worker, error)
        elif isinstance(error, InputLostError):
            self._forget_loading(worker, version)  # the learner will be asked for them again
            self.are_weights_lost |= version == self.publisher.version
        elif version != self.publisher.version:
            self._forget_loading(worker, version)
        else:
            text = f"{worker.name}: {error}; sending the weights in full"
            emit("weights.damaged", text, logging.WARNING, worker=worker.name, version=version.num_updates)
            self._watch(worker, self.publisher.send_full(worker), version)

    def _forget_loading(self, worker: Worker, version: WeightVersion) -> None:
        worker.digest = ""  # they may have arrived in part
        if worker.loading == version.digest:
            worker.loading = ""

    # -- scaling -------------------------------------------------------------------------------------------------

    def adjust(self, has_work: bool) -> None:
        """Resize the pools by the measured rates, and request nodes for them from the autoscaler."""
        targets = self.rates.targets(has_work)
        for role, size in targets.items():
            pool = self.crew.pools[role]
            if size != pool.target:
                emit("workers.resized", f"{role} workers: {pool.target} -> {size}", role=role, workers=size)
                pool.resize(size)
        if self.autoscaler is not None and targets != self._requested:
            was_accepted = self.autoscaler.request(bundles_for(self.config, targets))
            self._requested = targets if was_accepted else None
        draining = self.runtime.draining_nodes() if self._should_check_nodes() else {}
        if draining:
            self.crew.leave_nodes(draining, HAND_BACK_S)

    def _should_check_nodes(self) -> bool:
        now = self.runtime.clock()
        is_due = now - self._nodes_checked_at >= NODES_EVERY_S
        self._nodes_checked_at = now if is_due else self._nodes_checked_at
        return is_due

    # -- shutdown ------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        if self.autoscaler is not None:
            self.autoscaler.withdraw()
        if isinstance(self.runtime, RayRuntime):
            self.runtime.keep_spares(None)
        self.publisher.close()
        self.crew.stop()
        self.book.close()

    @property
    def num_restarts(self) -> int:
        return sum(pool.num_restarts for pool in self.crew.pools.values())
