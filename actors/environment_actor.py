"""A worker with a real environment: policy rollouts, evaluations, and real execution of imagined actions."""

from __future__ import annotations

import numpy as np
import torch

from actors.rollout_actor import RolloutActor
from wmpo_ray.config.run import Config
from wmpo_ray.core.types import Scores, Trajectories
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.policies.weight_payload import WeightPayload
from wmpo_ray.registry import load_policy, make_environment
from wmpo_ray.rollout.evaluation import execute_actions, rollout_policy
from wmpo_ray.rollout.judge import WorldJudge


class EnvironmentActor(RolloutActor):
    """Rolls out requests in the environment, which also judges them."""

    world: EnvironmentWorld
    judge = WorldJudge()
    num_slots = 0  # a simulator's scenes are stepped together, and are exact beside any others

    def __init__(self, config: Config, policy_dir: str):
        super().__init__(config, policy_dir, "")

    def make_world(self, path: str) -> EnvironmentWorld:
        return EnvironmentWorld(make_environment(self.config.environment), self.config.rollout.chunk_length)

    def evaluate(self, weights: WeightPayload, seeds: list[int], temperature: float) -> np.ndarray:
        """Real success [M] bool of the weights in a full payload from the given start states."""
        key = (self.config.seed, "evaluate")
        with self.borrowed(weights):
            episodes = rollout_policy(self.policy, self.world, seeds, temperature, key, keep_frames=False)
        return episodes.success

    def evaluate_saved(self, path: str, seeds: list[int], temperature: float) -> np.ndarray:
        """The same of a saved policy, in the precision in which weights travel."""
        policy = load_policy(self.config, path)
        travelling = getattr(torch, self.config.weights.dtype)
        with torch.no_grad():
            for tensor in policy.state_dict().values():
                if tensor.is_floating_point() and tensor.element_size() > travelling.itemsize:
                    tensor.copy_(tensor.to(travelling))
        key = (self.config.seed, "evaluate")
        return rollout_policy(policy, self.world, seeds, temperature, key, keep_frames=False).success

    def compare_labels(self, trajectories: Trajectories, seeds: list[int], scores: tuple[Scores, float]) -> np.ndarray:
        """Real outcome and imagined label [2, m] bool of imagined trajectories, by executing their actions.

        Those of unknown label are left out. Evaluation only: nothing of it reaches the learner.
        """
        actions = trajectories.actions.reshape(len(trajectories), -1, trajectories.actions.shape[-1])
        real = execute_actions(self.world, seeds, actions)
        labels = np.stack([real, scores[0].success])
        return labels if scores[0].known is None else labels[:, scores[0].known]
