"""The actors of a training run: placed once, replaced where they die, stopped at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.environment_actor import EnvironmentActor
from actors.imagination_actor import ImaginationActor
from actors.reward_actor import RewardActor
from cluster.actor_pool import ActorPool
from cluster.placement import check_placement, role_resources
from cluster.runtime import Ref, Runtime
from cluster.weight_store import ObjectStorePublisher
from learners.grpo_learner import GrpoLearner
from wmpo_ray.config import Config
from wmpo_ray.config_cluster import bounds
from wmpo_ray.starts import start_seeds
from wmpo_ray.statistics import wilson_interval
from wmpo_ray.types import WeightVersion


@dataclass(frozen=True)
class ModelPaths:
    """Folders that every actor reads its models from."""

    policy: Path
    world_model: Path
    verifier: Path | None
    reward_model: Path
    checkpoints: Path


class Team:
    def __init__(self, config: Config, runtime: Runtime, paths: ModelPaths):
        check_placement(config, runtime.available)
        self.config, self.runtime, self.paths = config, runtime, paths
        self.publisher = ObjectStorePublisher(runtime)
        roles = role_resources(config)
        self.learner = runtime.spawn(
            GrpoLearner,
            config,
            str(paths.policy),
            str(paths.checkpoints),
            resources=roles["learner"][1],
            name="learner",
        )
        self.environment = runtime.spawn(
            EnvironmentActor, config, str(paths.policy), resources=roles["environment"][1], name="environment"
        )
        restarts = config.faults.max_start_failures
        self.imagination = ActorPool(
            runtime,
            bounds(config.cluster.imagination_actors)[1],
            self._spawn_imagination,
            self.publisher.send,
            restarts,
        )
        self.reward = ActorPool(
            runtime, bounds(config.cluster.reward_actors)[1], self._spawn_reward, lambda actor: None, restarts
        )
        self.evaluation_seeds = [
            int(seed) for seed in start_seeds("on_the_way", config.evaluation.num_starts_on_the_way, config.seed)
        ]

    def start(self) -> tuple[list[dict], list[str]]:
        """Resume the learner from its newest checkpoint, if any, and give all replicas its weights.

        Returns the metrics of the updates already done and what was wrong with unusable checkpoints.
        """
        _, history, problems = self._ask(self.learner, "resume")
        version, weights = self.runtime.call(self.learner, "weights", num_returns=2)
        self.runtime.wait([version])
        for ref in self.publish(self.runtime.get(version), weights):
            self.runtime.wait([ref])
            self.runtime.get(ref)
        return history, problems

    def publish(self, version: WeightVersion, weights: Ref) -> list[Ref]:
        return self.publisher.publish(version, weights, self.imagination.actors)

    def save_policy(self, path: Path) -> None:
        self._ask(self.learner, "save_policy", str(path))

    def stop(self) -> None:
        self.imagination.stop()
        self.reward.stop()
        self.runtime.stop(self.learner)
        self.runtime.stop(self.environment)

    @property
    def version(self) -> WeightVersion:
        assert self.publisher.version is not None, "start() comes first"
        return self.publisher.version

    @property
    def num_restarts(self) -> int:
        return self.imagination.num_restarts + self.reward.num_restarts

    @staticmethod
    def success_figures(success: np.ndarray) -> dict[str, float]:
        low, high = wilson_interval(int(success.sum()), len(success))
        return {"real/success_rate": float(success.mean()), "real/success_low": low, "real/success_high": high}

    def _ask(self, actor: Any, method: str, *args: Any) -> Any:
        ref = self.runtime.call(actor, method, *args)
        self.runtime.wait([ref])
        return self.runtime.get(ref)

    def _spawn_imagination(self, index: int) -> Any:
        resources = role_resources(self.config)["imagination"][1]
        return self.runtime.spawn(
            ImaginationActor,
            self.config,
            str(self.paths.policy),
            str(self.paths.world_model),
            resources=resources,
            name=f"imagination-{index}",
        )

    def _spawn_reward(self, index: int) -> Any:
        resources = role_resources(self.config)["reward"][1]
        verifier = str(self.paths.verifier) if self.paths.verifier else None
        return self.runtime.spawn(
            RewardActor,
            self.config,
            str(self.paths.reward_model),
            verifier,
            resources=resources,
            name=f"reward-{index}",
        )
