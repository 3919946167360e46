"""The stage `demos`: expert demonstrations."""

from __future__ import annotations

from typing import Any

from cluster.recipes.checks import check_sources, source_needs
from cluster.recipes.context import RunContext
from cluster.recipes.stage import Stage
from wmpo_ray.config.run import Config
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.data.exchange.recorded_source import take_source
from wmpo_ray.data.store import episode_writer
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import expert_batches
from wmpo_ray.rollout.origins import recorded


def demos(context: RunContext) -> dict[str, Any]:
    """Record demonstrations in `trajectories/demos.parquet`, or take recorded ones."""
    config = context.config
    if (needs := source_needs(config, "demos")) is not None:
        take_source(needs, context.trajectory_file("demos"))
    else:
        record(context)
    episodes = context.episodes("demos")
    return {
        "num": len(episodes),
        "success": float(episodes.success.mean()),
        "mean_length": float(episodes.lengths.mean()),
    }


def record(context: RunContext) -> None:
    """The environment's expert demonstrates."""
    config = context.config
    environment = make_environment(config.environment)
    seeds = start_seeds("demos", config.demos.num_trajectories, config.seed)
    with episode_writer(context.trajectory_file("demos"), recorded(config.environment, "expert")) as writer:
        for part in expert_batches(environment, seeds, config.demos.action_noise, (config.seed, "demos")):
            writer.append(part)


def check(config: Config, serial: bool) -> None:
    check_sources(config, "demos")


DEMOS = Stage("demos", demos, makes=("trajectories/demos.parquet",), settings=("demos",), check=check)
