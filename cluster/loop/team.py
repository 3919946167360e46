"""The actors of a training run: four pools, and the way of the weights to those who act with them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.environment_actor import EnvironmentActor
from actors.reward_actor import RewardActor
from actors.rollout_actor import RolloutActor
from cluster.events.event_log import emit
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.runtime import ActorLostError, InputLostError, Ref, Runtime
from cluster.weights.delivery import make_publisher
from cluster.workers.actor_pool import ActorPool, Worker
from cluster.workers.crew import Crew
from cluster.workers.elasticity import Autoscaler, Targets, WorkerTargets
from cluster.workers.learner_group import LearnerGroup, check_ranks
from cluster.workers.placement import PlacementBook, Reservation, bundles_for, check_placement
from cluster.workers.telemetry import Telemetry
from learners.policy_learner import GrpoLearner
from wmpo_ray.config.run import Config
from wmpo_ray.core.types import WeightVersion

NODES_EVERY_S = 2.0  # between two questions for nodes that are being taken away
HAND_BACK_S = 10.0  # before its node goes, a worker hands back what it is at
MAX_MISMATCHES = 3  # times that one replica's weights may arrive damaged, before it is replaced


@dataclass(frozen=True)
class ModelPaths:
    """Folders that every actor reads its models from."""

    policy: Path
    world_model: Path
    verifier: Path | None
    reward_model: Path
    checkpoints: Path


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
        self.are_weights_lost = False  # the node that held them is gone
        self._is_new = False
        self._nodes_looked_at = -math.inf
        self.crew = Crew(runtime, config.faults, self.telemetry)
        self.book = PlacementBook(config, Reservation if isinstance(runtime, RayRuntime) else None)
        self.autoscaler = Autoscaler() if isinstance(runtime, RayRuntime) else None
        self.rates = WorkerTargets(config)
        self._asked_for: Targets | None = None
        first = self.rates.targets()
        verifier = str(paths.verifier) if paths.verifier else None
        self._add_learner()
        self._add("environment", 1, EnvironmentActor, str(paths.policy))
        self._add(
            "imagination",
            first.imagination,
            RolloutActor,
            str(paths.policy),
            str(paths.world_model),
        )
        self._add("reward", first.reward, RewardActor, str(paths.reward_model), verifier)

    def _add(self, role: str, size: int, cls: type, *args: Any) -> None:
        def spawn(index: int) -> Any:
            place = self.book.place(role, index)
            return self.runtime.spawn(cls, self.config, *args, resources=place, name=f"{role}-{index}")

        def release(index: int) -> None:
            self.book.release(role, index)

        pool = ActorPool(self.runtime, role, size, self.config.faults, spawn, release)
        self.crew.pools[role] = pool

    def _add_learner(self) -> None:
        """One worker, however many ranks stand behind it: they come and go with the first."""
        check_ranks(self.config, serial=not isinstance(self.runtime, RayRuntime))
        ranks = range(self.config.cluster.learner_ranks)
        paths = (str(self.paths.policy), str(self.paths.checkpoints))

        def spawn(index: int) -> Any:
            first, *others = [self.book.place("learner", rank) for rank in ranks]
            if not others:
                return self.runtime.spawn(GrpoLearner, self.config, *paths, resources=first, name="learner-0")
            args = (self.config, GrpoLearner, *paths, others)
            return self.runtime.spawn(LearnerGroup, *args, resources=first, name="learner-0")

        def release(index: int) -> None:
            for rank in ranks:
                self.book.release("learner", rank)

        pool = ActorPool(self.runtime, "learner", 1, self.config.faults, spawn, release, is_single=True)
        self.crew.pools["learner"] = pool

    # -- weights -------------------------------------------------------------------------------------------------

    def offer(self, version: WeightVersion, full: Ref, compact: Ref | None) -> None:
        """From now on these are the weights to imagine with."""
        self.publisher.offer(version, full, compact)
        self._is_new, self.are_weights_lost = True, False
        self.telemetry.offered(version)
        facts = {"version": version.num_updates, "weights": version.digest}
        emit("weights.offered", f"weights of update {version.num_updates}", logging.DEBUG, **facts)

    def deliver(self) -> None:
        """Bring the offered weights to every imagination worker that neither holds them nor is about to."""
        version = self.publisher.version
        if version is None:
            return
        behind = [w for w in self.crew.pools["imagination"].ready if version.digest not in (w.digest, w.loading)]
        if self._is_new and behind:
            self._is_new = False
            for worker, ref in self.publisher.deliver(behind):
                self._watch(worker, ref, version)
        else:  # they have just joined
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
        """A replica says what it holds; it serves once that is what was sent."""
        worker, offered = event.worker, self.publisher.version
        assert offered is not None
        worker.digest = event.version.digest
        if worker.digest == offered.digest:
            worker.loading, worker.num_mismatches, worker.version = "", 0, offered.num_updates
            self.crew.serves(worker)
            if all(other.digest == offered.digest for other in self.crew.pools["imagination"].ready):
                self.telemetry.arrived()
        elif event.version.num_updates == offered.num_updates:
            self._not_loaded(worker, offered, RuntimeError(f"it holds {worker.digest} instead of {offered.digest}"))
        elif worker.loading != offered.digest:  # others were offered since: they have not been sent yet
            worker.loading = ""

    def _not_loaded(self, worker: Worker, version: WeightVersion, error: Exception) -> None:
        """Weights that did not arrive are sent again, in full."""
        worker.num_mismatches += 1
        if isinstance(error, ActorLostError) or worker.num_mismatches > MAX_MISMATCHES:
            self.crew.fail(worker, error)
        elif isinstance(error, InputLostError):
            self._forget_loading(worker, version)  # the learner is asked for them again
            self.are_weights_lost |= version == self.publisher.version
        elif version != self.publisher.version:
            self._forget_loading(worker, version)
        else:
            text = f"{worker.name}: {error}; sending the weights in full"
            emit("weights.damaged", text, logging.WARNING, worker=worker.name, version=version.num_updates)
            self._watch(worker, self.publisher.send_full(worker), version)

    def _forget_loading(self, worker: Worker, version: WeightVersion) -> None:
        worker.digest = ""  # half of them may have arrived
        if worker.loading == version.digest:
            worker.loading = ""

    # -- how many ------------------------------------------------------------------------------------------------

    def adjust(self, has_work: bool) -> None:
        """Have as many workers as the measured rates ask for, and ask the autoscaler for the nodes under them."""
        targets = self.rates.targets(has_work)
        for role, size in targets._asdict().items():
            pool = self.crew.pools[role]
            if size != pool.target:
                emit("workers.resized", f"{role} workers: {pool.target} -> {size}", role=role, workers=size)
                pool.resize(size)
        if self.autoscaler is not None and targets != self._asked_for:
            heard = self.autoscaler.request(bundles_for(self.config, *targets))
            self._asked_for = targets if heard else None
        draining = self.runtime.draining_nodes() if self._looks_at_nodes() else {}
        if draining:
            self.crew.leave_nodes(draining, HAND_BACK_S)

    def _looks_at_nodes(self) -> bool:
        now = self.runtime.clock()
        is_due = now - self._nodes_looked_at >= NODES_EVERY_S
        self._nodes_looked_at = now if is_due else self._nodes_looked_at
        return is_due

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        if self.autoscaler is not None:
            self.autoscaler.withdraw()
        self.publisher.close()
        self.crew.stop()
        self.book.close()

    @property
    def num_restarts(self) -> int:
        return sum(pool.num_restarts for pool in self.crew.pools.values())
