"""One imagination worker: a world model and a replica of the policy."""

from __future__ import annotations

import time

import numpy as np
import torch

from wmpo_ray.config import Config
from wmpo_ray.imagination import imagine
from wmpo_ray.registry import load_policy, load_world_model
from wmpo_ray.runtime_settings import configure_process
from wmpo_ray.types import RolloutRequest, Trajectories, Videos, WeightVersion


class ImaginationActor:
    """Plain class; `cluster` wraps it where it is placed."""

    def __init__(self, config: Config, policy_dir: str, world_model_dir: str):
        configure_process(config.cluster.threads_per_process)
        self.config = config
        self.policy = load_policy(config.policy.kind, policy_dir)
        self.world_model = load_world_model(config, world_model_dir)
        self.version = WeightVersion(-1, "")

    def load_weights(self, version: WeightVersion, weights: dict[str, np.ndarray]) -> WeightVersion:
        """Take new weights between groups, so that every group has exactly one version."""
        # Copied: the arrays may be read-only views into shared memory.
        self.policy.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
        self.version = version
        return version

    def imagine(self, request: RolloutRequest) -> tuple[tuple[WeightVersion, float], Videos, Trajectories]:
        """Imagine a request: (version, seconds) for the driver, videos for a reward actor, trajectories for the learner.

        Raises RuntimeError if the replica does not hold the version that the request asks for.
        """
        if self.version.num_updates != request.version:
            raise RuntimeError(
                f"request {request.request_id} wants weights {request.version}, replica has {self.version}"
            )
        started = time.monotonic()
        result = imagine(self.policy, self.world_model, request, self.config.num_chunks)
        return (self.version, time.monotonic() - started), result.videos, result.trajectories
