"""Manages the learner for every training loop: starts it, tracks its versions, replaces it, saves the policy.

A started or restarted learner reports its state. The loop continues from there: in the same update, one update behind
it, or from an older checkpoint. Each loop decides what that means for its groups or episodes.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from cluster.events.event_log import emit
from cluster.events.run_log import RunLog
from cluster.loop.team import Team
from cluster.runtimes.runtime import ActorLostError, Ref
from cluster.weights.delivery import Offer
from cluster.workers.actor_pool import Worker
from cluster.workers.crew import Joined, Task
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import LearnerState, UpdateResult
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.runs.trust import TrustWatch

LOGGED = {  # metrics shown with an update, and their display names
    "imagined/success_rate": "imagined_success",
    "rollout/success_rate": "rollout_success",
    "real/success_rate": "real_success",
    "real/label_agreement": "label_agreement",
    "preference/accuracy": "preference_accuracy",
    "policy/clip_fraction": "clip_fraction",
    "policy/grad_norm": "gradient_norm",
    "time/update_s": "learner_s",
}
TURN_S = 0.5  # the longest wait between two checks of heartbeats, pauses and the number of workers


class Updated(NamedTuple):
    result: UpdateResult
    full: Ref | None = None  # the new weights, for a loop that sends them on
    compact: Ref | None = None


class LearnerRestored(NamedTuple):
    worker: Worker
    state: LearnerState


class Saved(NamedTuple):
    path: str


class LearnerDriver(ABC):
    def __init__(self, config: Config, team: Team, log: RunLog):
        self.config, self.team, self.log = config, team, log
        self.crew, self.telemetry = team.crew, team.telemetry
        self.version: WeightVersion | None = None  # the learner's version; None until it has reported its state
        self.num_learner_losses = 0  # during the current update
        self.resumed_from = 0
        self.saved: str | None = None
        self._trust = TrustWatch()

    # -- for subclasses ------------------------------------------------------------------------------------------

    @property
    def resume_arguments(self) -> tuple:
        """Arguments of the learner's `resume` call."""
        return ()

    @abstractmethod
    def restart(self, worker: Worker, state: LearnerState) -> None:
        """Continue from the learner's checkpoint, which is older than the loop's version, or the first one."""

    @abstractmethod
    def advance(self, event: Updated) -> None:
        """Handle a finished update."""

    @abstractmethod
    def repeat_update(self) -> None:
        """The learner has the loop's version: resubmit the update that was running, if any."""

    def fetch_weights(self, worker: Worker, version: int) -> Ref | None:
        """Fetch the weights of a version from the learner; None in a loop that does not publish weights."""
        return None

    def keep_weights(self, offer: Offer) -> None:
        """Store the learner's current weights."""

    # -- learner lifecycle ---------------------------------------------------------------------------------------

    def handle_learner(self, event: Any) -> None:
        match event:
            case Updated():
                self.advance(event)
            case Joined():
                self.welcome(event.worker)
            case LearnerRestored():
                self.on_restored(event)
            case Saved():
                self.saved = event.path

    def welcome(self, worker: Worker) -> None:
        """Handle a worker that has loaded its models: resume a learner, put others into service."""
        if worker.role != "learner":
            self.crew.serves(worker)
            return
        worker.loading = "checkpoint"
        ref = self.team.runtime.call(worker.actor, "resume", *self.resume_arguments)
        self.crew.watch(ref, worker, lambda state: LearnerRestored(worker, state))

    def on_restored(self, event: LearnerRestored) -> None:
        """Continue from the learner's state."""
        worker, state = event
        self.crew.serves(worker)
        worker.loading = ""
        for problem in state.problems:
            emit("checkpoint.damaged", problem, logging.WARNING)
        before, number = self.version, state.version.num_updates
        self.crew.cancel(lambda task: task.role == "learner")  # tasks of a lost learner are submitted again below
        self.learner_holds(state.version)
        if before is None:
            self.resumed_from = number
        if before is None or number < before.num_updates:
            self.restart(worker, state)
        elif number > before.num_updates:
            # The update is in the checkpoint; only its result was lost.
            result = UpdateResult(state.version, {k: v for k, v in state.history[-1].items() if k != "update"})
            self.advance(Updated(result, self.fetch_weights(worker, number)))
        else:
            self.keep_weights(Offer(state.version, self.fetch_weights(worker, number)))
            self.repeat_update()

    def learner_holds(self, version: WeightVersion) -> None:
        """Set the learner's version; a learner that has just started does not match it and gets no tasks."""
        self.version = version
        for worker in self.crew.pools["learner"].workers:
            worker.digest = version.digest

    def learner_lost(self, error: Exception) -> None:
        """A task was given up: an error of the learner ends the run; so does its process being lost too often."""
        self.num_learner_losses += 1
        if not isinstance(error, ActorLostError) or self.num_learner_losses >= self.config.faults.max_crashes:
            raise error

    def save_policy(self, path: str) -> None:
        """Submit the saving of the policy, unless the learner is busy."""
        assert self.version is not None
        if self.crew.is_busy("learner"):
            return
        self.crew.submit(
            Task(
                "learner",
                "save_policy",
                (path,),
                order=(self.config.training.num_updates,),
                done=lambda value, ref: Saved(value),
                given_up=self.learner_lost,
                weights=self.version.digest,
                max_crashes=1,  # a new learner must report its state first
            )
        )

    # -- metrics -------------------------------------------------------------------------------------------------

    def log_metrics(self, update: int, metrics: dict[str, float]) -> None:
        self.log.metrics(update, metrics)
        self.telemetry.metrics(metrics)
        shown: dict[str, Any] = {name: round(metrics[key], 4) for key, name in LOGGED.items() if key in metrics}
        text = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in shown.items())
        emit("update.metrics", f"update {update}: {text}", update=update, **shown)
        if warning := self._trust.note(update, metrics):
            emit("trust.exploitation", f"update {update}: {warning}", logging.WARNING, update=update)
