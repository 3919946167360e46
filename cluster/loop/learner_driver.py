"""What every training loop does with its one learner: bring it up, follow its versions, replace it, save the policy.

A learner that was started, for the first time or again, says where it stands; from there the loop goes on: in the same
update, behind it, or where an older checkpoint leaves it. What that means for groups or episodes is the loop's own.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from cluster.events.event_log import emit
from cluster.events.run_log import RunLog
from cluster.loop.team import Team
from cluster.runtimes.runtime import ActorLostError, Ref
from cluster.workers.actor_pool import Worker
from cluster.workers.crew import Joined, Task
from wmpo_ray.config.run import Config
from wmpo_ray.core.types import LearnerState, UpdateResult, WeightVersion

LOGGED = {  # metrics that are shown with an update, and their names there
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
        self.version: WeightVersion | None = None  # the learner's; None until it has said where it stands
        self.num_learner_losses = 0  # under the update that is being trained
        self.resumed_from = 0
        self.saved: str | None = None

    # -- a loop's own --------------------------------------------------------------------------------------------

    @property
    def resume_arguments(self) -> tuple:
        """What the learner needs to say where it stands."""
        return ()

    @abstractmethod
    def restart(self, worker: Worker, state: LearnerState) -> None:
        """Go on from the learner's checkpoint, which is older than the loop, or the first thing the loop hears of."""

    @abstractmethod
    def advance(self, event: Updated) -> None:
        """The learner has a new version."""

    @abstractmethod
    def repeat_update(self) -> None:
        """The learner stands where the loop does: ask again for what it was asked, if anything."""

    def fetch_weights(self, worker: Worker, version: int) -> Ref | None:
        """The weights of a version from a learner; None in a loop that sends none on."""
        return None

    def keep_weights(self, version: WeightVersion, full: Ref | None, compact: Ref | None) -> None:
        """Weights that the learner has just now."""

    # -- the learner's life --------------------------------------------------------------------------------------

    def handle_learner(self, event: Any) -> None:
        match event:
            case Updated():
                self.advance(event)
            case Joined():
                self.welcome(event.worker)
            case LearnerRestored():
                self.go_on(event)
            case Saved():
                self.saved = event.path

    def welcome(self, worker: Worker) -> None:
        """A worker has its models loaded: a learner is asked where it stands, others serve."""
        if worker.role != "learner":
            self.crew.serves(worker)
            return
        worker.loading = "checkpoint"
        ref = self.team.runtime.call(worker.actor, "resume", *self.resume_arguments)
        self.crew.watch(ref, worker, lambda state: LearnerRestored(worker, state))

    def go_on(self, event: LearnerRestored) -> None:
        """Go on where the learner stands."""
        worker, state = event
        self.crew.serves(worker)
        worker.loading = ""
        for problem in state.problems:
            emit("checkpoint.damaged", problem, logging.WARNING)
        before, number = self.version, state.version.num_updates
        self.crew.cancel(lambda task: task.role == "learner")  # what a lost one handed back is asked anew below
        self.learner_holds(state.version)
        if before is None:
            self.resumed_from = number
        if before is None or number < before.num_updates:
            self.restart(worker, state)
        elif number > before.num_updates:
            # The step is in the checkpoint, only its answer was lost.
            result = UpdateResult(state.version, {k: v for k, v in state.history[-1].items() if k != "update"})
            self.advance(Updated(result, self.fetch_weights(worker, number)))
        else:
            self.keep_weights(state.version, self.fetch_weights(worker, number), None)
            self.repeat_update()

    def learner_holds(self, version: WeightVersion) -> None:
        """What is asked of the learner from now on is asked of these weights, not of one that has just been started."""
        self.version = version
        for worker in self.crew.pools["learner"].workers:
            worker.digest = version.digest

    def learner_lost(self, error: Exception) -> None:
        """A task was given up: the learner's own mistake ends the run, the loss of its process does so at the limit."""
        self.num_learner_losses += 1
        if not isinstance(error, ActorLostError) or self.num_learner_losses >= self.config.faults.max_crashes:
            raise error

    def save_policy(self, path: str) -> None:
        """Ask for the policy, unless the learner is at work."""
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
                max_crashes=1,  # another learner first has to say where it stands
            )
        )

    # -- metrics -------------------------------------------------------------------------------------------------

    def log_metrics(self, update: int, metrics: dict[str, float]) -> None:
        self.log.metrics(update, metrics)
        self.telemetry.metrics(metrics)
        shown: dict[str, Any] = {name: round(metrics[key], 4) for key, name in LOGGED.items() if key in metrics}
        text = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in shown.items())
        emit("update.metrics", f"update {update}: {text}", update=update, **shown)
