"""The stage `collect`: episodes of the policy in the real environment."""

from __future__ import annotations

from typing import Any

from cluster.recipes.context import RunContext
from cluster.recipes.stage import Stage
from wmpo_ray.core.starts import Split, start_seeds
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.store import episode_writer
from wmpo_ray.registry import load_policy, make_environment
from wmpo_ray.rollout.evaluation import rollout_batches
from wmpo_ray.rollout.origins import recorded


def collect(context: RunContext) -> dict[str, Any]:
    """Record the real budget of episodes of the acting policy, and held-out ones that are never trained on."""
    config = context.config
    network = load_policy(config, str(context.acting_policy))
    environment = make_environment(config.environment)
    origin = recorded(config.environment, "policy", context.acting_policy)
    metrics: dict[str, Any] = {}
    sources: tuple[tuple[Split, str, int], ...] = (
        ("collect", "collect", config.collect.num_trajectories),
        ("gate", "held-out", config.gate.num_trajectories),
    )
    for split, name, count in sources:
        seeds, path = start_seeds(split, count, config.seed), context.trajectory_file(name)
        with context.reporter.bar(f"real episodes ({name})", count) as advance, episode_writer(path, origin) as writer:
            for part in rollout_batches(
                network, environment, seeds, config.collect.temperature, (config.seed, split), progress=advance
            ):
                writer.append(part)
        episodes = context.episodes(name)
        metrics |= {f"num_{split}": count, f"success_{split}": float(episodes.success.mean())}
    metrics["failures"] = failure_rates(episodes)
    return metrics


def failure_rates(episodes: Episodes) -> dict[str, float]:
    """Share of episodes that failed and showed each failure mode."""
    return {name: float((flags & ~episodes.success).mean()) for name, flags in episodes.failures.items()}


COLLECT = Stage(
    "collect",
    collect,
    needs=("policy",),
    makes=("trajectories/collect.parquet", "trajectories/held-out.parquet"),
    settings=("collect.num_trajectories", "collect.temperature", "gate.num_trajectories"),
)
