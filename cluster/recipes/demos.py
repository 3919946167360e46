"""The stage `demos`: expert demonstrations."""

from __future__ import annotations

from typing import Any

from cluster.recipes.context import RunContext
from cluster.recipes.stage import Stage
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.data.store import save_episodes
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import rollout_expert


def demos(context: RunContext) -> dict[str, Any]:
    """Leaves `trajectories/demos.parquet`."""
    config = context.config
    environment = make_environment(config.environment)
    seeds = start_seeds("demos", config.demos.num_trajectories, config.seed)
    episodes = rollout_expert(environment, seeds, config.demos.action_noise, (config.seed, "demos"))
    save_episodes(context.trajectory_file("demos"), episodes)
    return {
        "num": len(episodes),
        "success": float(episodes.success.mean()),
        "mean_length": float(episodes.lengths.mean()),
    }


DEMOS = Stage("demos", demos, makes=("trajectories/demos.parquet",), settings=("demos",))
