"""One worker with a real environment: rollouts of the policy, and what imagined actions do in reality."""

from __future__ import annotations

import numpy as np

from actors.replica import Replica
from wmpo_ray.config.run import Config
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.types import Scores, Trajectories
from wmpo_ray.policies.weight_payload import WeightPayload
from wmpo_ray.registry import load_policy, make_environment
from wmpo_ray.rollout.evaluation import execute_actions, rollout_policy


class EnvironmentActor(Replica):
    def __init__(self, config: Config, policy_dir: str):
        configure_process(config.cluster.threads_per_process)
        super().__init__(load_policy(config, policy_dir), config.cluster.threads_per_process)
        self.config = config
        self.environment = make_environment(config.environment)

    def evaluate(self, weights: WeightPayload, seeds: list[int], temperature: float) -> np.ndarray:
        """Real success [M] bool of the weights in a full payload from the given start states."""
        key = (self.config.seed, "evaluate")
        with self.borrowed(weights):
            episodes = rollout_policy(self.policy, self.environment, seeds, temperature, key, keep_frames=False)
        return episodes.success

    def compare_labels(self, trajectories: Trajectories, seeds: list[int], scores: tuple[Scores, float]) -> np.ndarray:
        """Real outcome and imagined label [2, M] bool of imagined trajectories, by executing their actions for real.

        Evaluation only: nothing of it reaches the learner.
        """
        actions = trajectories.actions.reshape(len(trajectories), -1, trajectories.actions.shape[-1])
        real = execute_actions(self.environment, seeds, actions)
        return np.stack([real, scores[0].success])
