"""Groups of sampled trajectories for a learner, and learners that are interrupted."""

from __future__ import annotations

import numpy as np

from learners.policy_learner import PolicyLearner
from tests.support.sampling import sampled_trajectories
from wmpo_ray.algorithms.batching import GroupSlice
from wmpo_ray.core.learner_types import UpdateFacts
from wmpo_ray.core.types import Trajectories
from wmpo_ray.environments.pocket.env import INSTRUCTIONS

NUM_CHUNKS, GROUP = 2, 4

FACTS = UpdateFacts({}, [(0, 0), (0, 1)], 7)


def sample(learner: PolicyLearner, num: int = 8, seed: int = 0) -> Trajectories:
    """Trajectories as the learner's own policy would act, on random frames."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (num, NUM_CHUNKS, 16, 16, 3)).astype(np.uint8)
    texts = tuple(INSTRUCTIONS[i % 2] for i in range(num))
    return sampled_trajectories(learner.policy, frames, texts, seed)


def groups(finish: int = 8) -> list[GroupSlice]:
    success = np.array([True, False, False, True])
    return [GroupSlice(((0, (i * GROUP, (i + 1) * GROUP)),), success, np.full(GROUP, finish)) for i in range(2)]


class Killed(Exception):
    pass


def interrupt(learner: PolicyLearner, after: int) -> list[int]:
    """Let the learner die after so many optimizer steps; returns where each step that it made began."""
    step, made = learner.take_step, []

    def counted(minibatch):
        if len(made) == after:
            raise Killed
        made.append(minibatch.first)
        return step(minibatch)

    learner.take_step = counted  # type: ignore[method-assign]
    return made
