"""The stage `collect`: episodes of the policy in the real environment."""

from __future__ import annotations

from typing import Any, Literal

from cluster.recipes.checks import check_sources, source_needs
from cluster.recipes.context import RunContext
from cluster.recipes.simulator_needs import records
from cluster.recipes.stage import Stage, content_of
from cluster.recording.parts import parts_folder
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.exchange.recorded_source import take_source

Name = Literal["collect", "gate"]  # of a section, and of the split of its start states
FILES: dict[Name, str] = {"collect": "collect", "gate": "held-out"}


def collect(context: RunContext) -> dict[str, Any]:
    """Record the real budget of episodes of the acting policy, and held-out ones that are never trained on.

    Each of the two is taken from a file instead where its section names one.
    """
    config = context.config
    metrics: dict[str, Any] = {}
    with context.recorder("collect") as recorder:
        for section, name in FILES.items():
            if (needs := source_needs(config, section)) is not None:
                take_source(needs, context.trajectory_file(name))
            else:
                seeds = start_seeds(section, getattr(config, section).num_trajectories, config.seed)
                key, target = (config.seed, section), context.trajectory_file(name)
                recorder.record_policy(name, seeds, key, context.acting_policy, target)
            episodes = context.episodes(name)
            metrics |= {f"num_{section}": len(episodes), f"success_{section}": float(episodes.success.mean())}
    return metrics | {"restarted": recorder.num_restarts, "failures": failure_rates(episodes)}


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
        "collect.episodes_per_batch",
    ),
    state=tuple(parts_folder(name) for name in FILES.values()),
    check=check,
    simulates=records,
)
