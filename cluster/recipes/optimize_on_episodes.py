"""The stage `optimize` of an offline algorithm: the policy learns from the episodes that it has collected."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from cluster.events.run_log import FolderLog
from cluster.recipes.context import RunContext
from cluster.recipes.optimize import OPTIMIZE, model_paths, telemetry
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError

LOOP = "cluster.loop.offline"


def optimize_on_episodes(context: RunContext) -> dict[str, Any]:
    """Improve the acting policy, from the newest checkpoint if there is one; leaves it in models/policy."""
    from cluster.loop.offline import train_offline  # type: ignore[import-not-found,unused-ignore]

    config = context.config
    with context.reporter.bar(config.recipe.kind, config.grpo.num_updates) as advance, ExitStack() as at_end:
        log = FolderLog(context.root, lambda update, values: advance(update, {}))
        at_end.callback(log.close)
        metrics = telemetry(context)
        at_end.callback(metrics.meter.set, "wmpo_stage", 0, stage="optimize")
        trained = train_offline(
            config,
            context.runtime,
            model_paths(context, config),
            context.trajectory_file("collect"),
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


def check(config: Config, serial: bool) -> None:
    """Raises ConfigError where the loop over recorded episodes is missing."""
    if find_spec(LOOP) is None:
        raise ConfigError(
            f'recipe.kind = "{config.recipe.kind}": there is no loop over recorded episodes yet ({LOOP}); set '
            'recipe.kind = "wmpo"'
        )
    OPTIMIZE.check(config, serial)


OPTIMIZE_ON_EPISODES = replace(OPTIMIZE, run=optimize_on_episodes, check=check)
