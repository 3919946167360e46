"""The stage `optimize`: reinforcement learning in imagination, by the configured algorithm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.events.event_log import emit
from cluster.events.run_log import FolderLog
from cluster.loop.ledger import FILE_NAME, Ledger
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import ModelPaths, Team
from cluster.loop.train import TrainingLoop
from cluster.recipes.context import RunContext
from cluster.recipes.gating.task_choice import left_out, with_tasks
from cluster.recipes.simulator_needs import measures_on_the_way
from cluster.recipes.stage import Stage
from cluster.workers.learner_group import check_ranks
from cluster.workers.telemetry import Telemetry
from cluster.workers.trace_log import FOLDER, TraceLog
from learners.learner_checkpoint import IN_UPDATE
from wmpo_ray.algorithms.base import online_algorithm
from wmpo_ray.algorithms.group_queue import metric_prefix
from wmpo_ray.config.algorithms import SECTIONS
from wmpo_ray.config.run import Config
from wmpo_ray.config.stretches import stretches
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.observations import StartState
from wmpo_ray.kinds import WORLD_MODELS
from wmpo_ray.rollout.fidelity import keyframes_of, starts_of
from wmpo_ray.runs.best_policy import FOLDER as BEST
from wmpo_ray.runs.best_policy import BestPolicy, check_best
from wmpo_ray.runs.checkpoint import find_checkpoint
from wmpo_ray.runs.trackers.jsonl import FILE_NAME as METRICS


def optimize(context: RunContext) -> dict[str, Any]:
    """Improve the acting policy, resuming from the newest checkpoint if any; saves it in models/policy."""
    config, starts = context.config, starts_to_roll_out(context)
    with context.reporter.bar(title_of(config), config.training.num_updates) as advance:

        def show(update: int, values: dict[str, float]) -> None:
            success = values.get(f"{metric_prefix(config)}/success_rate")
            advance(update, {} if success is None else {metric_prefix(config): success})

        log = FolderLog(context.root, context.trackers, show)
        loops = [train(context, stretch, starts, log) for stretch in stretches_ahead(config, context.checkpoints)]
    last, version = loops[-1], loops[-1].version
    assert version is not None
    return {
        **choose_policy(context, last.best, version.num_updates),
        "num_updates": version.num_updates,
        "weights": version.digest,
        "restarts": sum(loop.team.num_restarts for loop in loops),
        "resumed_from": loops[0].resumed_from,
        "groups": last.ledger.account()._asdict(),
    }


def stretches_ahead(config: Config, checkpoints: Path) -> list[Config]:
    """The stretches whose end the newest checkpoint has not reached, and the last one; one where settings never change."""
    *before, last = stretches(config)
    if not before:
        return [last]
    newest = find_checkpoint(checkpoints, lambda problem: None)  # the learner will name problems
    done = newest.meta["num_updates"] if newest else 0
    return [*(stretch for stretch in before if stretch.training.num_updates > done), last]


def train(context: RunContext, config: Config, starts: Sequence[StartState], log: FolderLog) -> TrainingLoop:
    """Train to the last update of a configuration; returns the loop, which has ended."""
    folder = context.root
    with ExitStack() as at_end:  # in reverse order: workers are stopped even if a callback fails
        live = telemetry(context)
        team = Team(config, context.runtime, model_paths(context, config), live)
        at_end.callback(team.stop)
        ledger = Ledger(folder / FILE_NAME)
        at_end.callback(ledger.close)
        at_end.callback(live.meter.set, "wmpo_stage", 0, stage="optimize")
        rollouts = Rollouts(config, team, ledger, *rollout_folders(folder))
        loop = TrainingLoop(config, team, starts, ledger, log, rollouts)
        loop.run(str(context.model("policy")))
    rollouts.forget(config.training.num_updates)
    return loop


def check(config: Config, serial: bool) -> None:
    """Raises ConfigError for learner ranks or a schedule that cannot be."""
    check_ranks(config, serial)
    stretches(config)


def starts_to_roll_out(context: RunContext) -> list[StartState]:
    """The first frame of each collected episode and, where they are asked for, later moments of it."""
    config, episodes = context.config, context.episodes("collect")
    starts, num = starts_of(episodes), config.rollout.keyframes_per_episode
    if num:
        kind = WORLD_MODELS.find(config.world_model.kind)
        context_frames = kind.context_frames(config, str(context.model("world-model")))
        starts += keyframes_of(episodes, num, config.rollout.chunk_length, context_frames)
    return with_tasks(starts, config, left_out(context))


def choose_policy(context: RunContext, best: BestPolicy, num_updates: int) -> dict[str, Any]:
    """Put the best policy in models/policy where it is wanted instead of the last; returns which one is there."""
    wanted, chosen = context.config.evaluation.final_policy, num_updates
    if wanted == "best" and best.copy_to(context.model("policy")) and best.record is not None:
        chosen = best.record.update
    elif wanted == "best":
        text = "no version of the policy could be measured: the last one is kept; `events.jsonl` says what failed"
        emit("policy.not_chosen", text, logging.WARNING)
    return {"policy_update": chosen, "best": None if best.record is None else best.record.model_dump()}


def title_of(config: Config) -> str:
    return f"{config.algorithm.kind} in {config.rollout.world}"


def telemetry(context: RunContext) -> Telemetry:
    """Live metrics through Ray or, without it, on a port of this process's own."""
    settings, folder = context.config.monitoring, context.root
    meter = context.meter if settings.metrics else None
    if meter is not None:
        meter.set("wmpo_updates_planned", context.config.training.num_updates)
        meter.set("wmpo_stage", 1, stage="optimize")
    if context.status is not None:
        context.status.update(num_updates=context.config.training.num_updates)
    return Telemetry(meter, TraceLog(folder / FOLDER, settings.keep_traces), context.status)


def rollout_folders(folder: Path) -> tuple[Path, Path]:
    """Where trajectories are spooled, and where start states that crash their workers are kept."""
    return folder / "rollouts", folder / "quarantine"


def model_paths(context: RunContext, config: Config) -> ModelPaths:
    return ModelPaths(
        policy=context.acting_policy,
        world_model=context.model("world-model"),
        verifier=context.model("verifier") if config.reward.verify.enabled else None,
        reward_model=context.model("reward-model"),
        checkpoints=context.checkpoints,
    )


def suits_world(world: str) -> Callable[[Config], None]:
    """Raises ConfigError for an algorithm that does not learn from rollouts, or for rollouts made elsewhere."""

    def suits(config: Config) -> None:
        online_algorithm(config)
        check_best(config)
        if config.rollout.world != world:
            raise ConfigError(
                f'rollout.world = "{config.rollout.world}": the recipe "{config.recipe.kind}" makes its rollouts in '
                f'"{world}"; remove rollout.world or choose another recipe.kind'
            )

    return suits


OPTIMIZE = Stage(
    "optimize",
    optimize,
    needs=("policy", "collect", "world-model", "reward-model"),
    follows=("gate",),
    needs_of_tasks=("gate",),  # it says which of several tasks are left out
    makes=("models/policy",),
    settings=(
        "recipe.kind",
        "rollout",
        "filter",
        "schedule",
        "algorithm",
        *SECTIONS,
        "weights.dtype",
        "reward.verify",
        "reward.label_noise",
        "reward.min_steps",
        "reward.shaping",
    ),
    settings_if=(
        (
            "evaluation.final_policy",
            "best",
            ("evaluation.every_updates", "evaluation.num_starts_on_the_way", "evaluation.temperature"),
        ),
    ),
    extent="*.num_updates",
    state=(
        "checkpoints/step-*",
        "checkpoints/latest",
        f"checkpoints/{IN_UPDATE}",
        f"checkpoints/{BEST}",
        FILE_NAME,
        METRICS,
        "tensorboard/events.*",  # the curves of supervised trainings are in folders beside them
        "rollouts",
        "quarantine",
        FOLDER,
    ),
    keeps_state=True,
    check=check,
    simulates=measures_on_the_way,
    suits=suits_world("imagination"),
)

# On rollouts in the environment, judged by the environment.
OPTIMIZE_ONLINE = replace(OPTIMIZE, suits=suits_world("environment"))
