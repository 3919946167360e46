"""The stage `optimize`: GRPO in imagination."""

from __future__ import annotations

from typing import Any

from cluster.context import RunContext
from cluster.team import ModelPaths, Team
from cluster.train import TrainingLoop
from wmpo_ray.config import Config
from wmpo_ray.fidelity import starts_of
from wmpo_ray.metrics import MetricsLog


def optimize(context: RunContext) -> dict[str, Any]:
    """Improve the base policy, from the newest checkpoint if there is one; leaves it in models/policy."""
    config = context.config
    starts = starts_of(context.episodes("collect"))
    team = Team(config, context.runtime, model_paths(context, config))
    log = MetricsLog(context.folder.path)
    try:
        history, problems = team.start()
        for problem in problems:
            context.reporter.say(f"[yellow]{problem}[/yellow]")
        restore_log(log, history)
        with context.reporter.bar("GRPO in imagination", config.grpo.num_updates) as advance:

            def record(update: int, values: dict[str, float]) -> None:
                log.log(update, values)
                shown = {"imagined": values["imagined/success_rate"]} if "imagined/success_rate" in values else {}
                advance(update, shown)

            advance(team.version.num_updates)
            version = TrainingLoop(config, context.runtime, team, starts, record).run()
        team.save_policy(context.model("policy"))
    finally:
        log.close()
        team.stop()
    return {
        "num_updates": version.num_updates,
        "weights": version.digest,
        "restarts": team.num_restarts,
        "resumed_from": len(history),
    }


def model_paths(context: RunContext, config: Config) -> ModelPaths:
    return ModelPaths(
        policy=context.model("base-policy"),
        world_model=context.model("world-model"),
        verifier=context.model("verifier") if config.reward.verify.enabled else None,
        reward_model=context.model("reward-model"),
        checkpoints=context.folder.checkpoints,
    )


def restore_log(log: MetricsLog, history: list[dict]) -> None:
    """Bring the metrics file to the checkpoint's state: a kill may have lost its last line, or left later ones."""
    log.truncate(len(history))
    there = {line["update"] for line in MetricsLog.read(log.path.parent) if "policy/loss" in line}
    for line in history:
        if line["update"] not in there:
            log.log(line["update"], {key: value for key, value in line.items() if key != "update"})
