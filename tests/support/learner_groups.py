"""Groups of sampled trajectories for a learner, and learners that are interrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from learners.policy_learner import PolicyLearner
from tests.support.sampling import sampled_trajectories
from tests.support.small_run import SETTINGS
from wmpo_ray.algorithms.batching import GroupSlice
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import UpdateFacts
from wmpo_ray.core.types import Trajectories
from wmpo_ray.environments.pocket.env import INSTRUCTIONS

NUM_CHUNKS, GROUP = 2, 4

NUM = 6  # groups of a larger batch
KEYS = [(0, attempt) for attempt in range(NUM)]
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


def configured(every: int = 1, **training) -> Config:
    rollout = {**SETTINGS["rollout"], "groups_per_update": NUM}
    kind = training.pop("kind", "grpo")
    grpo = {**SETTINGS["grpo"], **training}
    others = {key: value for key, value in SETTINGS.items() if key != "grpo"}
    return Config.model_validate(
        {
            **others,
            "rollout": rollout,
            "algorithm": {"kind": kind},
            kind: grpo,
            "checkpoint": {"every_optimizer_steps": every},
        }
    )


def mixed_groups(unknown: bool = False) -> list[GroupSlice]:
    """Groups of one source, each with other outcomes and ends; of `unknown` ones, some outcomes are not known."""
    found = []
    for place in range(NUM):
        success = np.arange(GROUP) < 1 + place % (GROUP - 1)
        known = np.arange(GROUP) != place % 5 if unknown else None
        finish = np.array([3, 8, 5, 8]) - place % 3
        found.append(GroupSlice(((0, (place * GROUP, (place + 1) * GROUP)),), success, finish, known))
    return found


def make(config: Config, policy_dir: str, folder: Path) -> PolicyLearner:
    learner = PolicyLearner(config, policy_dir, str(folder))
    learner.resume()
    return learner


def give_parts(learner: PolicyLearner, groups: list[GroupSlice], data, cuts: list[int]):
    """The groups between the cuts in calls of their own, and what is behind the last one in `update`."""
    for first, last in zip([0, *cuts], cuts, strict=False):
        assert learner.update_part(learner.num_updates, first, groups[first:last], data) == last
    facts = UpdateFacts({}, KEYS, 7, num_given=cuts[-1])
    return learner.update(groups[cuts[-1] :], facts, data)[0]


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith("time/")}


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
