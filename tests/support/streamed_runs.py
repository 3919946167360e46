"""Runs of the real main loop on a simulated cluster, in which learner or driver die between the parts of an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.loop.ledger import Ledger
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import ModelPaths, Team
from cluster.loop.train import TrainingLoop
from cluster.recipes.optimize import rollout_folders
from cluster.simulation.simulated_actors import SimulatedWorld
from cluster.simulation.simulated_runtime import ServiceTime, SimulatedRuntime
from tests.support.random_faults import NoLog, check_account
from tests.support.random_histories import STARTS
from tests.support.small_run import SETTINGS
from wmpo_ray.config.run import Config

NUM_UPDATES = 2
SECONDS = {"rollout": 10.0, "update_part": 1.0, "update": 1.0}  # of each call; the others take .1


class DriverKilled(BaseException):
    """Nothing in the loop may catch this."""


def streamed_config(stream: bool = True, num_actors: int = 3, weights: dict | None = None, **training) -> Config:
    """Eight groups an update, of two trajectories each."""
    return Config.model_validate(
        {
            "environment": {"horizon": 8},
            "rollout": {"group_size": 2, "groups_per_update": 8, "groups_per_request": 1},
            "grpo": {"num_updates": NUM_UPDATES, "minibatch_trajectories": 4, **training},
            "evaluation": {"every_updates": 0},
            "weights": weights or {},
            "cluster": {"imagination_actors": num_actors, "stream_updates": stream},
            "faults": {"backoff_s": 0.1, "max_start_failures": 100, "max_crashes": 100},
        }
    )


def small_streamed_config(stream: bool, every: int = 1, weights: dict | None = None, **training) -> Config:
    """With real models: four mini-batches an update; `every`: steps between two checkpoints inside it."""
    grpo = {**SETTINGS["grpo"], "num_updates": NUM_UPDATES, "minibatch_trajectories": 4, **training}
    cluster = {"imagination_actors": 3, "stream_updates": stream}
    checkpoint = {"every_optimizer_steps": every}
    others = {"cluster": cluster, "checkpoint": checkpoint, "weights": weights or {}}
    return Config.model_validate({**SETTINGS, "grpo": grpo, **others})


def slow_imagination(spread: float = 0.9) -> ServiceTime:
    """Imagination takes long, and sometimes much longer than usual: groups come in any order."""
    return lambda cls, method, rng: SECONDS.get(method, 0.1) * rng.uniform(1 - spread, 1 + spread)


@dataclass
class StreamedRun:
    """`world` and `folder` outlive the drivers; `between` is called at every wait, between all events."""

    config: Config
    folder: Path
    world: SimulatedWorld = field(default_factory=lambda: SimulatedWorld(0.6, spool="file"))
    parts: list[int] = field(default_factory=list)  # groups given before the rest of each batch that was finished

    def play(self, seed: int = 0, between: Callable[[SimulatedRuntime, TrainingLoop], None] | None = None) -> str:
        """One driver, to the end of the run; returns the digest of the weights, once the account is checked."""
        runtime = SimulatedRuntime(
            self.world.stand_ins(),
            slow_imagination(),
            seed,
            at_wait=lambda: between(runtime, loop) if between else None,
        )
        ledger = Ledger(self.folder / "ledger.jsonl")
        paths = ModelPaths(self.folder, self.folder, None, self.folder, self.folder)
        team = Team(self.config, runtime, paths)
        rollouts = Rollouts(self.config, team, ledger, *rollout_folders(self.folder))
        loop = TrainingLoop(self.config, team, STARTS, ledger, NoLog(), rollouts)
        finish = loop.feed.finish

        def noted(batch, spooled=False) -> None:
            self.parts.append(loop.feed.num_given if batch.update == loop.feed.update else 0)
            finish(batch, spooled)

        loop.feed.finish = noted  # type: ignore[method-assign]
        self.runtime, self.ledger, self.loop = runtime, ledger, loop
        try:
            version = loop.run(str(self.folder / "policy"))
            check_account(self, [list(keys) for keys in self.world.checkpoints[NUM_UPDATES].trained])
        finally:
            ledger.close()
            team.stop()
        return version.digest
