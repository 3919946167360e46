"""Success in imagination on held-out start states: what a run believes of its policies where it never trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Policy, World
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.types import Videos
from wmpo_ray.registry import load_policy, load_reward_model, load_world_model, make_environment
from wmpo_ray.rollout.act import act
from wmpo_ray.rollout.evaluation import rollout_policy
from wmpo_ray.rollout.fidelity import starts_of
from wmpo_ray.rollout.judge import VideoJudge
from wmpo_ray.runs.folder import RunFolder

NUM, BATCH = 256, 64  # the first of the starts that real success is measured on


def imagined_outcomes(run: RunFolder) -> dict[str, Any]:
    """Success of the base policy and the final one, a string of 1 and 0 each, start by start as in the real evaluation."""
    config = run.config
    judge = VideoJudge(load_reward_model(config, str(run.models / "reward-model")), config.reward.min_steps)
    world = load_world_model(config, str(run.models / "world-model"))
    found: dict[str, Any] = {"temperature": config.evaluation.temperature}
    for label, name in (("base", "base-policy"), ("final", "policy")):
        policy = load_policy(config, str(run.models / name))
        success = _imagined(config, policy, world, judge, held_out_starts(config, policy))
        found[label] = "".join("1" if each else "0" for each in success)
    return found


def held_out_starts(config: Config, policy: Policy) -> list[StartState]:
    """With their first frames."""
    seeds, key = start_seeds("evaluate", NUM, config.seed), (config.seed, "evaluate")
    environment = make_environment(config.environment)
    temperature = config.evaluation.temperature
    return starts_of(rollout_policy(policy, environment, seeds, temperature, key, keep_frames=False))


def _imagined(config: Config, policy: Policy, world: World, judge: VideoJudge, starts: list[StartState]) -> np.ndarray:
    success = []
    for first in range(0, len(starts), BATCH):
        part = starts[first : first + BATCH]

        def seeds_of(purpose: str, chunk: int, part: list[StartState] = part) -> list[int]:
            return [seed_for(config.seed, "held-out", purpose, start.seed or 0, chunk) for start in part]

        rollout = act(policy, world, part, config.episode_chunks, config.evaluation.temperature, seeds_of)
        videos = Videos(rollout.frames, rollout.instructions, rollout.flat_actions, tuple(part))
        success.append(judge.judge(videos).success)
    return np.concatenate(success)
