"""Trajectories as a policy would act on given frames, for tests of a learner."""

import numpy as np

from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.types import Trajectories


def sampled_trajectories(policy: Policy, frames: np.ndarray, texts: tuple[str, ...], seed: int = 0) -> Trajectories:
    """Decisions on frames [M, N, H, W, 3] uint8 at temperature 1."""
    num, num_chunks = frames.shape[:2]
    decisions = [
        policy.act(Observation.of(frames[:, n], texts), 1.0, [seed + 100 * n + i for i in range(num)])
        for n in range(num_chunks)
    ]
    return Trajectories(
        Observation.of(frames, texts).images,
        texts,
        {name: np.stack([d.record[name].numpy() for d in decisions], 1) for name in decisions[0].record},
        np.stack([decision.logprobs.numpy() for decision in decisions], 1),
        np.stack([decision.actions.numpy() for decision in decisions], 1),
        0,
    )
