"""The main loop of GRPO in imagination: one process, one wait, a handful of events. Read this file first.

    issue requests -> imagine -> score -> judge, settle in the queue -> update -> broadcast -> issue ...

The driver holds references only: videos go from an imagination actor to a reward actor, trajectories to the learner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cluster.actor_pool import Worker
from cluster.pending import Failed, Pending
from cluster.runtime import Ref, Runtime
from cluster.team import Team
from wmpo_ray.batching import GroupSlice
from wmpo_ray.config import Config
from wmpo_ray.group_queue import GroupQueue
from wmpo_ray.seeding import seed_for
from wmpo_ray.types import (
    Group,
    GroupRequest,
    RolloutRequest,
    Scores,
    StartState,
    UpdateResult,
    WeightVersion,
)

Log = Callable[[int, dict[str, float]], None]


class Imagined(NamedTuple):
    request: RolloutRequest
    worker: Worker
    version: WeightVersion
    seconds: float
    videos: Ref
    trajectories: Ref


class Scored(NamedTuple):
    request: RolloutRequest
    worker: Worker
    version: WeightVersion
    scores: Scores
    seconds: float
    scores_ref: Ref
    trajectories: Ref


class Updated(NamedTuple):
    result: UpdateResult
    weights: Ref


class Evaluated(NamedTuple):
    update: int
    figures: dict[str, float]


class WeightsLoaded(NamedTuple):
    version: WeightVersion


class TrainingLoop:
    """State of the loop; `run` is the loop itself."""

    def __init__(self, config: Config, runtime: Runtime, team: Team, starts: Sequence[StartState], log: Log):
        self.config, self.runtime, self.team, self.starts, self.log = config, runtime, team, starts, log
        self.pending = Pending(runtime)
        self.queue = GroupQueue(config)
        self.version = team.version
        self.num_attempts: dict[int, int] = {}  # update -> groups issued for it
        self.num_requests = 0
        self.is_updating = False
        self.load: dict[int, int] = {}  # reward worker -> calls under way
        self.sums: dict[str, float] = {}

    def run(self) -> WeightVersion:
        if self.version.num_updates == 0:
            self.evaluate(self.team.publisher.weights)  # where the curve starts
        while self.version.num_updates < self.config.grpo.num_updates:
            self.issue_requests()
            self.start_update()
            self.handle(self.pending.next())
        while len(self.pending):  # evaluations of the last update, surplus groups
            self.handle(self.pending.next())
        return self.version

    def handle(self, event: Any) -> None:
        match event:
            case Imagined():
                self.ask_for_scores(event)
            case Scored():
                self.settle(event)
            case Updated():
                self.advance(event)
            case Evaluated():
                self.log(event.update, event.figures)
            case Failed():
                event.on_loss(event.error)
            case WeightsLoaded():
                pass

    # -- requests ------------------------------------------------------------------------------------------------

    def issue_requests(self) -> None:
        while self.queue.num_free_slots > 0 and (worker := self.team.imagination.idle()):
            self.imagine(self.next_request(), worker)

    def next_request(self) -> RolloutRequest:
        """The next groups in issue order: a fresh shuffle of the start states for every update, walked in a circle."""
        update = self.version.num_updates + self.is_updating
        first = self.num_attempts.get(update, 0)
        self.queue.check_attempts(first)
        shuffled = np.random.default_rng(seed_for(self.config.seed, "starts", update)).permutation(len(self.starts))
        groups = []
        for attempt in range(first, first + self.config.rollout.groups_per_request):
            index = int(shuffled[attempt % len(self.starts)])
            groups.append(
                GroupRequest(
                    update, attempt, index, self.starts[index], self.config.rollout.group_size, self.config.seed
                )
            )
        self.num_attempts[update] = first + len(groups)
        self.num_requests += 1
        request = RolloutRequest(
            self.num_requests, tuple(groups), self.version.num_updates, self.config.rollout.temperature
        )
        self.queue.issue(request)
        return request

    def imagine(self, request: RolloutRequest, worker: Worker) -> None:
        worker.busy = True
        head, videos, trajectories = self.runtime.call(worker.actor, "imagine", request, num_returns=3)

        def retry_on_new_actor(error: Exception) -> None:
            self.team.imagination.replace(worker, error)
            self.imagine(request, worker)

        self.watch(
            head,
            lambda value: Imagined(request, worker, value[0], value[1], videos, trajectories),
            retry_on_new_actor,
        )

    def ask_for_scores(self, event: Imagined) -> None:
        event.worker.busy = False
        self.add("time/imagine_s", event.seconds)
        if self.queue.is_surplus(event.request):
            return
        self.score(event)

    def score(self, event: Imagined) -> None:
        worker = self.team.reward.least_loaded(self.load)
        self.load[worker.index] = self.load.get(worker.index, 0) + 1
        ref = self.runtime.call(worker.actor, "score", event.videos)

        def retry_on_new_actor(error: Exception) -> None:
            self.load[worker.index] -= 1
            if worker.actor is failed_actor:  # several of its calls fail together; one replaces it
                self.team.reward.replace(worker, error)
            self.score(event)

        failed_actor = worker.actor
        self.watch(
            ref,
            lambda value: Scored(event.request, worker, event.version, value[0], value[1], ref, event.trajectories),
            retry_on_new_actor,
        )

    def settle(self, event: Scored) -> None:
        self.load[event.worker.index] -= 1
        self.add("time/score_s", event.seconds)
        if event.request.groups[0].attempt == 0:
            self.compare_labels(event)
        size = self.config.rollout.group_size
        for i, request in enumerate(event.request.groups):
            rows = slice(i * size, (i + 1) * size)
            refuted = event.scores.refuted
            group = Group(
                request,
                event.version.num_updates,
                event.scores.success[rows],
                event.scores.finish_step[rows],
                int(refuted[rows].sum()) if refuted is not None else 0,
                event.trajectories,
                (rows.start, rows.stop),
            )
            self.queue.settle(group, self.version.num_updates)

    # -- updates -------------------------------------------------------------------------------------------------

    def start_update(self) -> None:
        if self.is_updating or (batch := self.queue.take_batch()) is None:
            return
        self.is_updating = True
        sources = list(dict.fromkeys(group.trajectories for group in batch.groups))
        slices = [
            GroupSlice(sources.index(group.trajectories), group.rows, group.success, group.finish_step)
            for group in batch.groups
        ]
        metrics = {**batch.metrics, **self.sums, "faults/restarts": self.team.num_restarts}
        self.sums = {}
        result, weights = self.runtime.call(self.team.learner, "update", slices, metrics, *sources, num_returns=2)
        self.watch(result, lambda value: Updated(value, weights), _learner_lost)

    def advance(self, event: Updated) -> None:
        started = time.monotonic()
        self.is_updating = False
        self.version = event.result.version
        self.queue.release(self.version.num_updates)
        for ref in self.team.publish(self.version, event.weights):
            self.watch(ref, WeightsLoaded, lambda error: None)  # a dead replica shows in its next request
        self.add("time/broadcast_s", time.monotonic() - started)
        self.log(self.version.num_updates, event.result.metrics)
        self.evaluate(event.weights)

    # -- looking at reality (nothing of it reaches the learner) --------------------------------------------------

    def evaluate(self, weights: Ref) -> None:
        every, update = self.config.evaluation.every_updates, self.version.num_updates
        if not every or update % every:
            return
        seeds = self.team.evaluation_seeds
        ref = self.runtime.call(self.team.environment, "evaluate", weights, seeds, self.config.evaluation.temperature)
        self.watch(ref, lambda success: Evaluated(update, self.team.success_figures(success)), lambda error: None)

    def compare_labels(self, event: Scored) -> None:
        """Execute the first imagined trajectories of an update for real: the imagined labels under optimisation."""
        if not self.config.evaluation.every_updates:
            return
        seeds = [g.start.seed for g in event.request.groups for _ in range(g.group_size)]
        if any(seed is None for seed in seeds):
            return
        ref = self.runtime.call(self.team.environment, "compare_labels", event.trajectories, seeds, event.scores_ref)
        update = event.request.groups[0].update + 1
        self.watch(
            ref,
            lambda labels: Evaluated(
                update,
                {
                    "real/label_agreement": float((labels[0] == labels[1]).mean()),
                    "real/false_positive_rate": float((labels[1] & ~labels[0]).mean()),
                },
            ),
            lambda error: None,
        )

    # -- small things --------------------------------------------------------------------------------------------

    def watch(self, ref: Ref, make_event: Callable[[Any], Any], on_loss: Callable[[Exception], None]) -> None:
        self.pending.add(ref, make_event, on_loss)

    def add(self, key: str, value: float) -> None:
        self.sums[key] = self.sums.get(key, 0.0) + value


def _learner_lost(error: Exception) -> None:
    raise RuntimeError(f"{error}\nthe learner is gone; run again with --resume to go on from its last checkpoint")
