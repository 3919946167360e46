"""Weights of optimizer steps go ahead while an update is under way (`weights.per_step`), so that its last step is all
that is left to send.

A worker that makes rollouts puts them aside and acts with what it has until the update is over. It says which step it
holds; whoever does not hold the one before the last gets what it would get without this.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cluster.loop.feed import streams_updates
from cluster.loop.learner_driver import Updated
from cluster.loop.team import Team
from cluster.runtimes.runtime import ActorLostError, Ref
from cluster.weights.delivery import LastStep
from cluster.workers.actor_pool import Worker
from cluster.workers.crew import Crew
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import StepFacts
from wmpo_ray.core.types import WeightVersion


class StepEncoded(NamedTuple):
    """The learner has encoded the step that a part of an update made possible."""

    version: str  # digest of the weights that the update began with
    facts: StepFacts
    delta: Ref


class Staged(NamedTuple):
    """A worker holds the weights of a step beside its own."""

    worker: Worker
    name: str


class Stepping(Protocol):
    """The online loop, as far as it sends steps."""

    config: Config
    crew: Crew
    team: Team
    version: WeightVersion | None


class StepWeights:
    def __init__(self, loop: Stepping):
        self._loop = loop
        self._is_on = loop.config.weights.per_step and streams_updates(loop.config)

    def ask(self) -> None:
        """The learner has trained a part: let it encode what that changed, before its next one."""
        if not self._is_on or (learner := self._learner()) is None:
            return
        loop, digest = self._loop, learner.digest
        about, delta = loop.team.runtime.call(learner.actor, "step_weights", num_returns=2)
        loop.crew.watch(about, learner, lambda facts: StepEncoded(digest, facts, delta))

    def send(self, event: StepEncoded) -> None:
        """To all workers that hold what the update began with."""
        if not event.facts.base:
            return
        for worker in self._loop.team.replicas.ready:
            if worker.digest == event.version and not worker.loading:
                self._stage(worker, event.delta)

    def _stage(self, worker: Worker, delta: Ref) -> None:
        crew = self._loop.crew

        def failed(error: Exception) -> None:
            worker.staged = ""
            if isinstance(error, ActorLostError):
                crew.fail(worker, error)  # all else is mended by what is sent at the update's end

        ref = crew.runtime.beside(worker.actor, "stage_weights", delta)
        crew.watch(ref, worker, lambda name: Staged(worker, name), failed)

    def staged(self, event: Staged) -> None:
        event.worker.staged = event.name

    def last(self, event: Updated) -> LastStep | None:
        """The delta of an update's last step, if it is worth sending and somebody can use it."""
        facts, learner = event.result.last_step, self._learner()
        if facts is None or learner is None:
            return None
        if not any(worker.staged == facts.base for worker in self._loop.team.replicas.ready):
            return None
        return LastStep(facts, self._loop.team.runtime.call(learner.actor, "last_step"))

    def _learner(self) -> Worker | None:
        """The learner, if it holds the loop's version: one that has just started does not."""
        version = self._loop.version
        learners = self._loop.crew.pools["learner"].ready
        return next((w for w in learners if version is not None and w.digest == version.digest), None)
