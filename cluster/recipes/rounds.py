"""Rounds of a recipe: each has its own folder, seed and initial world model.

From round 2 on, a run collects episodes with the policy of the previous round and continues to align that round's world
models. The seed differs, so that start states and random numbers are new; evaluation is the same for every seed.
"""

from __future__ import annotations

from pathlib import Path

from wmpo_ray.config.run import Config
from wmpo_ray.runs.round_folders import round_folder

__all__ = ["config_of_round", "round_folder"]

SEED_STEP = 3919  # start states repeat after 4000 seeds; with this step, not before 4000 rounds
MAX_SEED = 2**31


def config_of_round(config: Config, run: Path, round: int) -> Config:
    """The configuration that the stages of a round see."""
    if round == 1:
        return config
    models = round_folder(run, round - 1) / "models"
    world, reward = config.world_model, config.reward
    if world.is_learned:
        world = world.model_copy(update={"pretrained": str(models / "world-model")})
    if reward.verify.enabled:
        verify = reward.verify.model_copy(update={"pretrained": str(models / "verifier")})
        reward = reward.model_copy(update={"verify": verify})
    seed = (config.seed + SEED_STEP * (round - 1)) % MAX_SEED
    return config.model_copy(update={"seed": seed, "world_model": world, "reward": reward})
