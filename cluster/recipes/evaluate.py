"""The stage `evaluate`, and the evaluation of any saved policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cluster.events.progress import Reporter
from cluster.recipes.context import RunContext
from cluster.recipes.gating.task_choice import left_out
from cluster.recipes.rounds import round_folder
from cluster.recipes.simulator_needs import always
from cluster.recipes.stage import Stage
from cluster.recording.parts import parts_folder
from cluster.recording.recorder import EpisodeRecorder
from wmpo_ray.config.loading import read_config_json
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.types import Episodes
from wmpo_ray.registry import disruptions_of, load_policy, make_environment
from wmpo_ray.report.run_data import DISRUPTIONS
from wmpo_ray.rollout.evaluation import is_recovery, rollout_policy
from wmpo_ray.runs.folder import CONFIG
from wmpo_ray.runs.outcomes import Outcomes, outcomes_file, read_outcomes, write_outcomes
from wmpo_ray.runs.round_folders import label_of
from wmpo_ray.runs.trackers.jsonl import JsonlTracker
from wmpo_ray.runs.trust import trust_card

NUM_DISRUPTED = 4  # starts that are shown with each disruption


def evaluate(context: RunContext) -> dict[str, Any]:
    """Evaluate the policy of this round in the real environment on held-out start states, in round 1 the base policy too.

    All policies on the same starts with the same random numbers. `outcomes` of a round keeps how each start ended, so
    that policies and runs can be compared in pairs: "final" is the policy of the round; the base policy's are in round 1.
    Each of several tasks has figures of its own; the result is of all of them, also of one that the gate has left out.
    """
    metrics: dict[str, Any] = {}
    with context.recorder("evaluate", context.run_config) as recorder:
        if context.round == 1:
            save_disruptions(context, recorder)
            base, metrics = measure(context, recorder, "base", context.model("base-policy"))
        else:
            base = read_outcomes(outcomes_file(context.of_round(1).root, "base"))
        final, own = measure(context, recorder, "final", context.model("policy"))
        metrics |= {"restarted": recorder.num_restarts}
    if without := left_out(context):
        own |= {"left_out": without}
    later = range(context.round + 1, context.run_config.recipe.rounds + 1)
    if not any(context.folder.is_done(label_of("evaluate", round)) for round in later):
        context.folder.set_result(base.rate, final.rate)
    return {**metrics, **own, "success": final.rate, "trust": trust_card(JsonlTracker.read(context.root))}


def measure(context: RunContext, recorder: EpisodeRecorder, label: str, path: Path) -> tuple[Outcomes, dict[str, Any]]:
    """(outcomes of its episodes, metrics) of a policy; saves the outcomes and some videos."""
    outcomes, videos = recorder.evaluate(label, path)
    if videos is not None:
        save_videos(context, label, videos)
        write_outcomes(outcomes_file(context.root, label), outcomes)
        recorder.finish_evaluation(label)
    return outcomes, {f"{name}_{label}": value for name, value in outcomes.metrics.items()}


def save_videos(context: RunContext, name: str, chosen: Episodes) -> None:
    """A few episodes of each kind for the report."""
    np.savez_compressed(
        context.videos / f"{name}.npz",
        frames=np.asarray(chosen.frames),
        success=chosen.success,
        lengths=chosen.lengths,
        recovered=is_recovery(chosen),
        instructions=np.array(json.dumps(chosen.instructions)),
    )


def save_disruptions(context: RunContext, recorder: EpisodeRecorder) -> None:
    """For the report: some start frames with everything that the environment can disrupt."""
    config = context.run_config
    if not (others := disruptions_of(config.environment)):
        return
    names, seeds = ("none", *others), start_seeds("evaluate", config.evaluation.num_starts, config.seed)[:NUM_DISRUPTED]
    frames = recorder.disrupted_starts(seeds, names)
    np.savez_compressed(context.videos / DISRUPTIONS, frames=frames, instructions=np.array(json.dumps(names)))


EVALUATE = Stage(
    "evaluate",
    evaluate,
    needs=("policy", "optimize"),
    builds_on=("evaluate",),  # which has evaluated the base policy
    makes=("videos/base.npz", "videos/final.npz", f"videos/{DISRUPTIONS}", "outcomes/base.json", "outcomes/final.json"),
    settings=("evaluation.num_starts", "evaluation.temperature", "evaluation.episodes_per_batch"),
    state=(parts_folder("base"), parts_folder("final")),
    simulates=always,
)


def _final_policy(out: Path) -> Path:
    """The policy of the last round that has one, whatever the configuration at hand says."""
    rounds = read_config_json(out / CONFIG).recipe.rounds if (out / CONFIG).is_file() else 1
    paths = [round_folder(out, round) / "models" / "policy" for round in range(rounds, 0, -1)]
    return next((path for path in paths if path.is_dir()), paths[-1])


def evaluate_policy(
    config: Config,
    out: Path,
    policy_dir: Path | None = None,
    num_starts: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Success of a saved policy on held-out start states with its 95% interval; default: the run's final policy.

    Nothing is written. `outcomes` holds the outcome of each start, for comparisons in pairs. Raises UserError where there
    is no policy.
    """
    configure_process(config.cluster.threads_per_process)
    path = policy_dir or _final_policy(Path(out))
    if not path.is_dir():
        raise UserError(f"no policy at {path}; give one with --policy, or run the stages first")
    count = num_starts or config.evaluation.num_starts
    policy = load_policy(config, str(path))
    environment = make_environment(config.environment)
    seeds, sampling_key = start_seeds("evaluate", count, config.seed), (config.seed, "evaluate")
    with torch.no_grad(), Reporter(console).bar("real episodes", count) as advance:
        episodes = rollout_policy(
            policy,
            environment,
            seeds,
            config.evaluation.temperature,
            sampling_key,
            keep_frames=False,
            progress=advance,
        )
    outcomes = Outcomes.of(episodes, config, path, sampling_key)
    return {
        "success": outcomes.rate,
        "failures": outcomes.metrics["failures"],
        "outcomes": outcomes.model_dump(),
    }
