"""The stage `demos`: expert demonstrations."""

from __future__ import annotations

from typing import Any

from cluster.recipes.checks import check_sources, source_needs
from cluster.recipes.context import RunContext
from cluster.recipes.simulator_needs import demonstrates
from cluster.recipes.stage import Stage
from cluster.recording.parts import parts_folder
from wmpo_ray.config.run import Config
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.data.exchange.recorded_source import take_source


def demos(context: RunContext) -> dict[str, Any]:
    """Record demonstrations in `trajectories/demos.parquet`, or take recorded ones."""
    config = context.config
    restarted = 0
    if (needs := source_needs(config, "demos")) is not None:
        take_source(needs, context.trajectory_file("demos"))
    else:
        seeds = start_seeds("demos", config.demos.num_trajectories, config.seed)
        with context.recorder("demos") as recorder:
            recorder.record_expert("demos", seeds, (config.seed, "demos"), context.trajectory_file("demos"))
            restarted = recorder.num_restarts
    episodes = context.episodes("demos")
    return {
        "num": len(episodes),
        "success": float(episodes.success.mean()),
        "mean_length": float(episodes.lengths.mean()),
        "restarted": restarted,
    }


def check(config: Config, serial: bool) -> None:
    check_sources(config, "demos")


DEMOS = Stage(
    "demos",
    demos,
    makes=("trajectories/demos.parquet",),
    settings=("demos",),
    state=(parts_folder("demos"),),
    check=check,
    simulates=demonstrates,
)
