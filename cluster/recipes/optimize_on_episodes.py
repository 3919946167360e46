"""The stage `optimize` of an offline algorithm: the policy learns from its collected episodes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from cluster.events.run_log import FolderLog
from cluster.loop.offline import train_offline
from cluster.recipes.context import RunContext
from cluster.recipes.optimize import OPTIMIZE, model_paths, telemetry
from cluster.recipes.stage import no_simulator
from wmpo_ray.algorithms.base import offline_algorithm
from wmpo_ray.config.run import Config
from wmpo_ray.runs.best_policy import check_best


def optimize_on_episodes(context: RunContext) -> dict[str, Any]:
    """Improve the acting policy, resuming from the newest checkpoint if any; saves it in models/policy."""
    config, title = context.config, f"{context.config.algorithm.kind} on recorded episodes"
    with context.reporter.bar(title, config.training.num_updates) as advance, ExitStack() as at_end:
        metrics = telemetry(context)
        log = FolderLog(context.root, context.trackers, lambda update, values: advance(update, {}))
        at_end.callback(metrics.meter.set, "wmpo_stage", 0, stage="optimize")
        trained = train_offline(
            config,
            context.runtime,
            model_paths(context, config),
            context.files_so_far("collect"),
            context.model("policy"),
            log,
            telemetry=metrics,
        )
    return {
        "num_updates": trained.version.num_updates,
        "weights": trained.version.digest,
        "restarts": trained.num_restarts,
        "resumed_from": trained.resumed_from,
    }


def suits(config: Config) -> None:
    """Raises ConfigError for an algorithm that does not learn from recorded episodes."""
    offline_algorithm(config)
    check_best(config)


OPTIMIZE_ON_EPISODES = replace(OPTIMIZE, run=optimize_on_episodes, simulates=no_simulator, suits=suits)
