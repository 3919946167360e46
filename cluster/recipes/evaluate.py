"""The stage `evaluate`, and the evaluation of any saved policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cluster.events.progress import Reporter
from cluster.recipes.collect import failure_rates
from cluster.recipes.context import RunContext
from cluster.recipes.rounds import round_folder
from cluster.recipes.stage import Stage
from wmpo_ray.config.loading import read_config_json
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.core.types import Episodes
from wmpo_ray.core.untrusted import read_json
from wmpo_ray.registry import load_policy, make_environment
from wmpo_ray.rollout.evaluation import rollout_outcomes, rollout_policy
from wmpo_ray.runs.folder import CONFIG
from wmpo_ray.runs.round_folders import label_of
from wmpo_ray.runs.trackers.jsonl import JsonlTracker
from wmpo_ray.runs.trust import trust_card

OUTCOMES = "outcomes.json"


def evaluate(context: RunContext) -> dict[str, Any]:
    """Evaluate the policy of this round in the real environment on held-out start states, in round 1 the base policy too.

    All policies on the same starts with the same random numbers. `outcomes.json` of a round keeps the outcome of each
    start, for the policy of the round ("final") and the base policy, so that policies and runs can be compared in pairs.
    """
    outcomes, metrics = {}, {}
    if context.round == 1:
        outcomes["base"], metrics = measure(context, "base", context.model("base-policy"))
    else:
        outcomes["base"] = read_outcomes(context.of_round(1).root)["policies"]["base"]
    outcomes["final"], own = measure(context, "final", context.model("policy"))
    atomic_write(
        context.root / OUTCOMES, json.dumps({**starts_of_evaluation(context.run_config), "policies": outcomes})
    )
    base, final = success_of(outcomes["base"]), success_of(outcomes["final"])
    later = range(context.round + 1, context.run_config.recipe.rounds + 1)
    if not any(context.folder.is_done(label_of("evaluate", round)) for round in later):
        context.folder.set_result(base, final)
    return {**metrics, **own, "success": final, "trust": trust_card(JsonlTracker.read(context.root))}


def measure(context: RunContext, label: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(outcomes of its episodes, metrics) of a policy; saves some videos."""
    config = context.run_config
    network, environment = load_policy(config, str(path)), make_environment(config.environment)
    starts = starts_of_evaluation(config)
    with context.reporter.bar(f"real episodes ({label})", len(starts["seeds"])) as advance:
        episodes, videos = rollout_outcomes(
            network, environment, starts["seeds"], starts["temperature"], (config.seed, "evaluate"), progress=advance
        )
    save_videos(context, label, videos)
    return outcomes_of(episodes), {
        f"success_{label}": float(episodes.success.mean()),
        f"failures_{label}": failure_rates(episodes),
        f"success_length_{label}": float(episodes.lengths[episodes.success].mean()) if episodes.success.any() else None,
    }


def success_of(outcomes: dict[str, Any]) -> dict[str, Any]:
    """Success rate with its 95% interval, and the number of episodes."""
    bits = outcomes["success"]
    low, high = wilson_interval(bits.count("1"), len(bits))
    return {"value": bits.count("1") / len(bits), "low": low, "high": high, "num": len(bits)}


def starts_of_evaluation(config: Config) -> dict[str, Any]:
    """The start states that every round is evaluated on, and the temperature."""
    seeds = start_seeds("evaluate", config.evaluation.num_starts, config.seed)
    return {"seeds": seeds.tolist(), "temperature": config.evaluation.temperature}


def read_outcomes(root: Path) -> dict[str, Any]:
    """`outcomes.json` of a round. Raises UserError where it is missing or damaged."""
    path, redo = root / OUTCOMES, "`wmpo stage evaluate` with the same config and --out makes it again"
    try:
        found = read_json(path)
        if set(found["policies"]["base"]["success"]) - {"0", "1"}:
            raise TypeError("the outcomes of the base policy are no text of 0 and 1")
    except UserError as error:
        raise UserError(f"{error}; {redo}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); {redo}") from error
    return found


def outcomes_of(episodes: Episodes) -> dict[str, Any]:
    """Outcome of each episode: success as a string of 1 and 0, steps until it (T without), and failures likewise."""
    return {
        "success": _bits(episodes.success),
        "lengths": episodes.lengths.tolist(),
        "failures": {name: _bits(flags) for name, flags in episodes.failures.items()},
    }


def _bits(flags: np.ndarray) -> str:
    return "".join("1" if flag else "0" for flag in flags)


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
    builds_on=("evaluate",),  # which has evaluated the base policy
    makes=("videos/base.npz", "videos/final.npz", OUTCOMES),
    settings=("evaluation.num_starts", "evaluation.temperature"),
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
    """Success of a saved policy on held-out start states with its 95% interval; default: the run's final policy."""
    configure_process(config.cluster.threads_per_process)
    path = policy_dir or _final_policy(Path(out))
    if not path.is_dir():
        raise UserError(f"no policy at {path}; give one with --policy, or run the stages first")
    count = num_starts or config.evaluation.num_starts
    policy = load_policy(config, str(path))
    environment = make_environment(config.environment)
    seeds = start_seeds("evaluate", count, config.seed)
    with torch.no_grad(), Reporter(console).bar("real episodes", count) as advance:
        episodes = rollout_policy(
            policy,
            environment,
            seeds,
            config.evaluation.temperature,
            (config.seed, "evaluate"),
            keep_frames=False,
            progress=advance,
        )
    low, high = wilson_interval(int(episodes.success.sum()), count)
    failures = {name: float((flags & ~episodes.success).mean()) for name, flags in episodes.failures.items()}
    return {"value": float(episodes.success.mean()), "low": low, "high": high, "num": count, "failures": failures}
