"""The main loop of online training: one process, one wait, a handful of events. Read this file first.

    issue requests -> imagine -> score -> judge, settle in the queue -> update -> publish weights -> issue ...

The driver holds references only: videos go from an imagination actor to a reward actor, trajectories to the learner.
`crew.py` assigns tasks to workers and handles lost actors; the ledger records every step of every group. `feed.py` gives
the learner what is complete of a batch that still fills. Groups for update u are always imagined under the weights of
update max(0, u - max_staleness), so the result depends neither on the number of actors nor on their faults.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cluster.events.event_log import emit
from cluster.events.run_log import RunLog
from cluster.loop.budget import Budget
from cluster.loop.feed import Feed, PartTrained
from cluster.loop.learner_driver import TURN_S, LearnerDriver, LearnerRestored, Updated
from cluster.loop.ledger import Ledger, State
from cluster.loop.reality import Evaluated, Reality
from cluster.loop.recovery import ask_for_weights, restart
from cluster.loop.rollouts import Imagined, Rollouts, Scored
from cluster.loop.start_order import StartOrder
from cluster.loop.step_weights import Staged, StepEncoded, StepWeights
from cluster.loop.team import Team, WeightsLoaded
from cluster.runtimes.runtime import Ref
from cluster.weights.delivery import Offer
from cluster.workers.actor_pool import Worker
from wmpo_ray.algorithms.group_queue import GroupQueue, ReadyBatch, metric_prefix
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import LearnerState
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.types import GroupRequest, RolloutRequest, WeightVersion
from wmpo_ray.data.spool import SpoolError
from wmpo_ray.runs.best_policy import BestPolicy


class TrainingLoop(LearnerDriver):
    """State of the loop; `run` is the main loop."""

    def __init__(
        self, config: Config, team: Team, starts: Sequence[StartState], ledger: Ledger, log: RunLog, rollouts: Rollouts
    ):
        super().__init__(config, team, log)
        self.starts, self.ledger, self.rollouts = starts, ledger, rollouts
        self.reality, self.budget = Reality(config, team), Budget(config)
        self.best = BestPolicy(config, team.paths.checkpoints, team.paths.policy)
        self.training: ReadyBatch | None = None
        self.feed = Feed(self)
        self.next_update = 0  # the first update whose batch has not been taken
        self.offered = -1  # version of the weights that groups are imagined under
        self.weights: dict[int, Offer] = {}
        self.steps = StepWeights(self)
        self.num_requests = 0
        self.orders = StartOrder(config, ledger, starts)
        self.busy_s = 0.0  # time spent in the loop itself, waits excluded

    @property
    def queue(self) -> GroupQueue:
        return self.rollouts.queue

    def run(self, policy_path: str) -> WeightVersion:
        """Train to the last update and save the policy in `policy_path`."""
        while self.saved is None:
            started = time.perf_counter()
            self.issue_requests()
            self.start_update()
            self.offer_weights()
            self.finish(policy_path)
            self.team.adjust(has_work=self.has_work)
            self.report()
            self.crew.turn()
            self.ledger.flush()
            self.busy_s += time.perf_counter() - started
            ended = self.crew.pending.wait(TURN_S)
            started = time.perf_counter()
            for event in self.crew.events(ended):
                self.handle(event)
            self.busy_s += time.perf_counter() - started
        assert self.version is not None
        return self.version

    @property
    def has_work(self) -> bool:
        """Whether more groups will be requested."""
        return self.next_update < self.config.training.num_updates and not self.is_budget_spent

    @property
    def is_budget_spent(self) -> bool:
        """Whether the batch of the next update cannot be completed within `rollout.max_trajectories`."""
        update = self.next_update
        counts = self.queue.counts(update)
        return counts["free"] > 0 and not counts["in_flight"] and not self.budget.allows(self.queue.num_issued(update))

    def handle(self, event: Any) -> None:
        match event:
            case Imagined():
                if (scored := self.rollouts.score(event)) is not None:
                    self.settle(scored)
            case Scored():
                self.settle(event)
            case PartTrained():
                self.feed.trained()
                if event.has_step:
                    self.steps.ask()
            case StepEncoded():
                self.steps.send(event)
            case Staged():
                self.steps.staged(event)
            case WeightsLoaded():
                self.team.loaded(event)
            case Evaluated():
                self.best.measured(event.update, event.metrics)  # first: what is in the log is not measured again
                self.log_metrics(event.update, event.metrics)
            case _:  # learner events (restored, updated, saved) and workers that have joined
                self.handle_learner(event)

    # -- requests ------------------------------------------------------------------------------------------------

    def weights_for(self, update: int) -> int:
        """The version that groups for an update are imagined under."""
        return max(0, update - self.config.max_staleness)

    def issue_requests(self) -> None:
        """Issue requests for updates whose weights are published, while slots are free."""
        if self.version is None:
            return
        update = self.next_update
        while update < self.config.training.num_updates and self.weights_for(update) == self.offered:
            while self.queue.has_free_slot(update) and self.budget.allows(self.queue.num_issued(update)):
                self.queue.check_attempts(update)
                for request in self.next_requests(update):
                    self.rollouts.imagine(request)
            update += 1

    def next_requests(self, update: int) -> list[RolloutRequest]:
        """The next groups in issue order: start states have a new order for every update and are cycled through."""
        first, rollout = self.queue.num_issued(update), self.config.rollout
        order = self.orders.of(update, self.weights_for(update))
        groups = []
        for attempt in range(first, first + rollout.groups_per_request):
            index = int(order[attempt % len(self.starts)])
            groups.append(
                GroupRequest(update, attempt, index, self.starts[index], rollout.group_size, self.config.seed)
            )
        version = self.weights[self.weights_for(update)].version
        self.queue.issue(groups)
        for group in groups:
            self.ledger.append(State.ISSUED, group.key, start=group.start_index, weights=version.digest)
        whole = RolloutRequest(
            self.num_requests, tuple(groups), version.num_updates, rollout.temperature, version.digest
        )
        requests = whole.cut(rollout.request_size)
        self.num_requests += len(requests)
        return requests

    def settle(self, event: Scored) -> None:
        if self.version is None:
            self.ledger.late()
            return
        is_first = event.request.groups[0].attempt < self.config.rollout.groups_per_request
        if is_first and self.rollouts.is_open(event.request):
            self.reality.compare_labels(event)
        self.rollouts.settle(event, self.version.num_updates)

    # -- updates -------------------------------------------------------------------------------------------------

    def start_update(self) -> None:
        """Take the batch of the next update once it is full; until then, give the learner what is complete of it."""
        if self.version is None or self.training:
            return
        if (batch := self.queue.take_batch(self.next_update)) is None:
            self.feed.offer_part()
            return
        self.rollouts.drop_surplus(batch.surplus)
        self.budget.take(batch.update, batch.metrics)
        if not self.best.is_real:  # its rollouts are those of an earlier version
            self.best.measured(self.weights_for(batch.update), batch.metrics)
        self.telemetry.trains([self.version.num_updates - group.version for group in batch.groups])
        self.training, self.next_update = batch, self.next_update + 1
        self.feed.finish(batch)

    def take_metrics(self) -> dict[str, float]:
        """The driver's own metrics for an update."""
        busy_s, self.busy_s = self.busy_s, 0.0
        late = self.crew.num_late + self.ledger.num_late
        return {"time/driver_s": busy_s, "faults/restarts": float(self.team.num_restarts), "faults/late": float(late)}

    def advance(self, event: Updated) -> None:
        """Record a finished update in the ledger, then release its rollouts."""
        batch, self.training = self.training, None
        assert batch is not None
        self.learner_holds(event.result.version)
        version = event.result.version
        for group in batch.groups:
            self.ledger.append(State.TRAINED, group.request.key, version=version.num_updates)
        self.keep_weights(Offer(version, event.full, event.compact, self.steps.last(event)))
        self.rollouts.forget(event.result.oldest_checkpoint)
        self.telemetry.updated()
        self.log_metrics(version.num_updates, event.result.metrics)
        num_groups = event.result.metrics[f"{metric_prefix(self.config)}/trajectories"] / self.config.rollout.group_size
        self.team.rates.updated(round(num_groups), event.result.metrics["time/update_s"])
        self.reality.evaluate(version.num_updates, event.full)

    def report(self) -> None:
        """Publish the run's status once a second."""
        if self.version is None or not self.telemetry.is_due():
            return
        is_idle = self.training is None and not self.feed.is_busy
        is_ready = bool(self.crew.pools["learner"].ready) and is_idle and self.has_work
        self.telemetry.report_status(
            self.crew.pools,
            self.team.replicas,
            self.queue.counts(self.next_update),
            self.version.num_updates,
            self.offered,
            is_ready,
        )

    def fetch_weights(self, worker: Worker, version: int) -> Ref:
        return ask_for_weights(self, worker, version)

    def keep_weights(self, offer: Offer) -> None:
        newest = offer.version.num_updates
        self.weights[newest] = offer
        for old in [v for v in self.weights if v < min(self.offered, newest)]:
            del self.weights[old]

    def offer_weights(self) -> None:
        """Publish the newest weights that the unfinished batches allow."""
        if self.version is None or not self.weights:
            return
        unfinished = self.next_update
        while self.queue.is_complete(unfinished):
            unfinished += 1
        version = min(self.version.num_updates, self.weights_for(unfinished))
        if version == self.offered and self.team.are_weights_lost:
            learner = self.crew.pools["learner"].ready
            is_kept = self.training is None or version + self.config.max_staleness > self.version.num_updates
            if not learner or learner[0].digest != self.version.digest or not is_kept:
                return  # ask the replacement learner for them; after this update they are not needed
            self.weights[version] = Offer(self.weights[version].version, ask_for_weights(self, learner[0], version))
        if version in self.weights and (version != self.offered or self.team.are_weights_lost):
            self.offered = version
            self.team.offer(self.weights[version])
        self.team.deliver()

    def finish(self, path: str) -> None:
        """Save the policy once all updates and evaluations are done."""
        if self.version is None or self.has_work or self.version.num_updates < self.next_update:
            return
        if self.is_budget_spent and not self.budget.is_closed and self.next_update < self.config.training.num_updates:
            self.budget.is_closed = True
            self.rollouts.drop_surplus(self.queue.abandon(self.next_update))
            done, limit = self.version.num_updates, self.budget.limit
            text = f"rollout.max_trajectories={limit} is spent: training ends after {done} updates"
            emit("budget.spent", text, updates=done, trajectories=self.budget.spent)
        if not self.crew.is_busy("environment"):
            self.save_policy(path)

    # -- new and lost learners -----------------------------------------------------------------------------------

    def welcome(self, worker: Worker) -> None:
        if worker.role != self.team.replicas.role:  # rollout workers still need weights
            super().welcome(worker)

    def on_restored(self, event: LearnerRestored) -> None:
        self.feed.forget()
        super().on_restored(event)

    def restart(self, worker: Worker, state: LearnerState) -> None:
        self.feed.forget(is_rollback=True)
        restart(self, worker, state)

    def repeat_update(self) -> None:
        if self.training is not None:
            self.feed.finish(self.training)

    def learner_lost(self, error: Exception) -> None:
        if isinstance(error, SpoolError):
            self.num_learner_losses += 1
            self.version = None  # resume from the checkpoint; missing groups are imagined again
        else:
            super().learner_lost(error)
