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
from cluster.recipes.rounds import round_folder
from cluster.recipes.stage import Stage
from wmpo_ray.config.loading import read_config_json
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.types import Episodes
from wmpo_ray.registry import load_policy, make_environment
from wmpo_ray.rollout.evaluation import rollout_outcomes, rollout_policy
from wmpo_ray.runs.folder import CONFIG
from wmpo_ray.runs.outcomes import Outcomes, outcomes_file, write_outcomes
from wmpo_ray.runs.trackers.jsonl import JsonlTracker
from wmpo_ray.runs.trust import trust_card


def evaluate(context: RunContext) -> dict[str, Any]:
    """Evaluate the base policy and the final policy in the real environment on held-out start states.

    Both on the same ones; `outcomes` keeps how each of them ended, so that policies and runs can be compared in pairs.
    """
    config = context.config
    environment = make_environment(config.environment)
    seeds = start_seeds("evaluate", config.evaluation.num_starts, config.seed)
    sampling_key = (config.seed, "evaluate")
    metrics: dict[str, Any] = {}
    results = {}
    for label, path in (("base", context.model("base-policy")), ("final", context.last_policy)):
        network = load_policy(config, str(path))
        with context.reporter.bar(f"real episodes ({label})", len(seeds)) as advance:
            episodes, videos = rollout_outcomes(
                network, environment, seeds, config.evaluation.temperature, sampling_key, progress=advance
            )
        outcomes = Outcomes.of(episodes, config, path, sampling_key)
        write_outcomes(outcomes_file(context.root, label), outcomes)
        results[label] = outcomes.rate
        metrics |= {f"{name}_{label}": value for name, value in outcomes.metrics.items()}
        save_videos(context, label, videos)
    context.folder.set_result(results["base"], results["final"])
    lines = JsonlTracker.read(round_folder(context.root, config.recipe.rounds))
    return metrics | {"trust": trust_card(lines)}


def save_videos(context: RunContext, name: str, chosen: Episodes) -> None:
    """A few successes and failures for the report."""
    np.savez_compressed(
        context.videos / f"{name}.npz",
        frames=np.asarray(chosen.frames),
        success=chosen.success,
        lengths=chosen.lengths,
        instructions=np.array(json.dumps(chosen.instructions)),
    )


EVALUATE = Stage(
    "evaluate",
    evaluate,
    needs=("policy", "optimize"),
    makes=("videos/base.npz", "videos/final.npz", "outcomes/base.json", "outcomes/final.json"),
    settings=("evaluation.num_starts", "evaluation.temperature"),
)


def _rounds_of(out: Path) -> int:
    """How many rounds the run in a folder has, whatever the configuration at hand says."""
    return read_config_json(out / CONFIG).recipe.rounds if (out / CONFIG).is_file() else 1


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
    path = policy_dir or round_folder(Path(out), _rounds_of(Path(out))) / "models" / "policy"
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
