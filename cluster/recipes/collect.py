"""The stage `collect`: episodes of the policy in the real environment."""

from __future__ import annotations

from typing import Any, Literal

from cluster.recipes.checks import check_sources, source_needs
from cluster.recipes.context import RunContext
from cluster.recipes.stage import Stage, content_of
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Environment, Policy
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.exchange.recorded_source import take_source
from wmpo_ray.data.store import episode_writer
from wmpo_ray.registry import load_policy, make_environment
from wmpo_ray.rollout.evaluation import rollout_batches
from wmpo_ray.rollout.origins import recorded

Name = Literal["collect", "gate"]  # of a section, and of the split of its start states
FILES: dict[Name, str] = {"collect": "collect", "gate": "held-out"}


def collect(context: RunContext) -> dict[str, Any]:
    """Record the real budget of episodes of the acting policy, and held-out ones that are never trained on.

    Each of the two is taken from a file instead where its section names one.
    """
    config, acting = context.config, None
    metrics: dict[str, Any] = {}
    for section, name in FILES.items():
        if (needs := source_needs(config, section)) is not None:
            take_source(needs, context.trajectory_file(name))
        else:
            acting = acting or (load_policy(config, str(context.acting_policy)), make_environment(config.environment))
            record(context, section, *acting)
        episodes = context.episodes(name)
        metrics |= {f"num_{section}": len(episodes), f"success_{section}": float(episodes.success.mean())}
    return metrics | {"failures": failure_rates(episodes)}


def record(context: RunContext, section: Name, network: Policy, environment: Environment) -> None:
    """The acting policy rolls out in the environment from the start states of the section."""
    config, name = context.config, FILES[section]
    count = getattr(config, section).num_trajectories
    seeds, path = start_seeds(section, count, config.seed), context.trajectory_file(name)
    origin = recorded(config.environment, "policy", context.acting_policy)
    with context.reporter.bar(f"real episodes ({name})", count) as advance, episode_writer(path, origin) as writer:
        for part in rollout_batches(
            network, environment, seeds, config.collect.temperature, (config.seed, section), progress=advance
        ):
            writer.append(part)


def failure_rates(episodes: Episodes) -> dict[str, float]:
    """Share of episodes that failed and showed each failure mode."""
    return {name: float((flags & ~episodes.success).mean()) for name, flags in episodes.failures.items()}


def check(config: Config, serial: bool) -> None:
    """Raises UserError for files that the episodes cannot be taken from."""
    collected, held_out = (getattr(config, section).source for section in FILES)
    if collected and config.recipe.rounds > 1:
        raise ConfigError(
            f"recipe.rounds = {config.recipe.rounds}: every round would take the same episodes of collect.source = "
            f"{collected}; set recipe.rounds to 1 or remove collect.source"
        )
    if collected and held_out and content_of(collected) == content_of(held_out):
        raise ConfigError(
            f"gate.source = {held_out} is the same as collect.source: held-out episodes must not be trained on; name another "
            "file"
        )
    check_sources(config, *FILES)


COLLECT = Stage(
    "collect",
    collect,
    needs=("policy",),
    makes=("trajectories/collect.parquet", "trajectories/held-out.parquet"),
    settings=(
        *("collect.source", "collect.num_trajectories", "collect.temperature"),
        *("gate.source", "gate.num_trajectories"),
        *("collect.source_image_key", "collect.source_instruction", "gate.source_image_key", "gate.source_instruction"),
    ),
    check=check,
)
