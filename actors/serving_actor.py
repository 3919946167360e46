"""Acts for robots with one copy of a policy; new weights are taken between two batches."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch

from wmpo_ray.config.run import Config
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.remote.served_weights import Weights, load_weights


class Acted(NamedTuple):
    """What a policy decided for a batch."""

    actions: np.ndarray  # [B, K, D] float32
    version: WeightVersion
    seconds: float


class ServingActor:
    """One call at a time: a batch is decided by one version, as a whole."""

    def __init__(self, config: Config, weights: Weights, temperature: float):
        configure_process(config.cluster.threads_per_process)
        self.config, self.temperature = config, temperature
        self.load(weights)

    def load(self, weights: Weights) -> WeightVersion:
        """Raises UserError for weights that cannot be used; those of before stay."""
        policy, digest = load_weights(self.config, weights)
        version = WeightVersion(weights.num_updates, digest)
        self._held = (policy, version)
        return version

    def version(self) -> WeightVersion:
        return self._held[1]

    @torch.no_grad()
    def act(self, observation: Observation, seeds: list[int]) -> Acted:
        policy, version = self._held
        began = time.perf_counter()
        decision = policy.act(observation, self.temperature, seeds)
        actions = decision.actions.detach().float().cpu().numpy()
        return Acted(actions, version, time.perf_counter() - began)
