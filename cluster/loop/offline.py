"""Training on recorded episodes: one learner, one update after another, no rollouts.

The learner reads the episodes itself and samples from them by the run's seed and the number of the update, so the
driver only requests the next update. `learner_driver.py` handles a lost learner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.events.run_log import RunLog
from cluster.loop.learner_driver import TURN_S, LearnerDriver, Updated
from cluster.loop.team import ModelPaths, Team
from cluster.runtimes.runtime import Runtime
from cluster.workers.actor_pool import Worker
from cluster.workers.crew import Task
from cluster.workers.telemetry import Telemetry
from wmpo_ray.algorithms.base import offline_algorithm
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import LearnerState, UpdateResult
from wmpo_ray.core.types import WeightVersion

NO_GROUPS = {"in_flight": 0, "admitted": 0, "needed": 0, "free": 0}


class Trained(NamedTuple):
    version: WeightVersion
    resumed_from: int
    num_restarts: int


class OfflineLoop(LearnerDriver):
    """`episodes`: the files of recorded episodes, readable by every learner process."""

    def __init__(
        self,
        config: Config,
        team: Team,
        episodes: Sequence[Path],
        log: RunLog,
        progress: Callable[[int, dict[str, float]], None] = lambda update, metrics: None,
    ):
        super().__init__(config, team, log)
        self.episodes, self.progress = episodes, progress
        self.is_training = False

    @property
    def resume_arguments(self) -> tuple:
        return tuple(map(str, self.episodes))

    @property
    def has_work(self) -> bool:
        return self.version is None or self.version.num_updates < self.config.training.num_updates

    def run(self, policy_path: str) -> WeightVersion:
        """Train to the last update and save the policy in `policy_path`."""
        while self.saved is None:
            self.start_update()
            if not self.has_work:
                self.save_policy(policy_path)
            self.team.adjust(has_work=self.has_work)
            self.report()
            self.crew.turn()
            for event in self.crew.events(self.crew.pending.wait(TURN_S)):
                self.handle_learner(event)
        assert self.version is not None
        return self.version

    def start_update(self) -> None:
        if self.version is None or self.is_training or not self.has_work:
            return
        self.is_training, self.num_learner_losses = True, 0
        self.train()

    def train(self) -> None:
        """Submit the next update to the learner."""
        assert self.version is not None
        number = self.version.num_updates
        self.crew.submit(
            Task(
                "learner",
                "update_recorded",
                (),
                order=(number,),
                done=lambda value, ref: Updated(value),
                given_up=self.learner_lost,
                weights=self.version.digest,
                max_crashes=1,  # a new learner must report its state first
                worked=lambda worker, work: self.telemetry.worked(worker, "update", work, number, number),
            )
        )

    def advance(self, event: Updated) -> None:
        self.is_training = False
        result: UpdateResult = event.result
        self.learner_holds(result.version)
        self.telemetry.updated()
        self.log_metrics(result.version.num_updates, result.metrics)
        self.progress(result.version.num_updates, result.metrics)

    def restart(self, worker: Worker, state: LearnerState) -> None:
        self.is_training = False
        self.log.restore(state.history)

    def repeat_update(self) -> None:
        if self.is_training:
            self.train()

    def report(self) -> None:
        """Publish the run's status once a second."""
        if self.version is not None and self.telemetry.is_due():
            number, learner = self.version.num_updates, self.crew.pools["learner"]
            self.telemetry.report_status(self.crew.pools, learner, NO_GROUPS, number, number, wants_work=False)


def train_offline(
    config: Config,
    runtime: Runtime,
    paths: ModelPaths,
    episodes: Sequence[Path],
    policy_path: Path,
    log: RunLog,
    progress: Callable[[int, dict[str, float]], None] = lambda update, metrics: None,
    telemetry: Telemetry | None = None,
) -> Trained:
    """Train `paths.policy` on recorded episodes, from the newest checkpoint if there is one, into `policy_path`.

    Raises ConfigError for an algorithm that needs rollouts, UserError if the episodes contain nothing to learn from.
    """
    offline_algorithm(config)
    team = Team(config, runtime, paths, telemetry)
    try:
        loop = OfflineLoop(config, team, episodes, log, progress)
        version = loop.run(str(policy_path))
    finally:
        team.stop()
    return Trained(version, loop.resumed_from, team.num_restarts)
