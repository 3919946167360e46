"""Stages with recorded episodes."""

from __future__ import annotations

import numpy as np

from cluster.recipes.align import WORLD_MODEL
from cluster.recipes.clone import POLICY
from cluster.recipes.rewards import REWARD_MODEL
from wmpo_ray.data.store import save_episodes
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.rollout.evaluation import rollout_expert
from wmpo_ray.runs.folder import RunFolder

STAGES = {stage.name: stage for stage in (POLICY, WORLD_MODEL, REWARD_MODEL)}


def record(folder: RunFolder) -> None:
    for name, first, noise in (("demos", 0, 0.2), ("collect", 20, 3.0), ("held-out", 40, 3.0)):
        seeds = np.arange(first, first + 12)
        save_episodes(
            folder.trajectories / f"{name}.parquet", rollout_expert(PocketEnvironment(24), seeds, noise, (0,))
        )
