"""The stages up to the gate and the last one: plain functions of the run's context that return their figures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from cluster.recipes.align import world_model
from cluster.recipes.context import RunContext
from cluster.recipes.gate import gate
from cluster.recipes.optimize import optimize
from cluster.recipes.trainings import clone, train_rewards
from learners.supervised.reward_training import choose_threshold
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.starts import Split, start_seeds
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.store import save_episodes
from wmpo_ray.registry import (
    load_policy,
    load_reward_model,
    load_world_model,
    make_environment,
    pretrained_policy,
    pretrained_reward_model,
)
from wmpo_ray.reward_models.decisions import best_probabilities
from wmpo_ray.rollout.evaluation import concatenate_episodes, rollout_expert, rollout_policy
from wmpo_ray.rollout.fidelity import binary_report, decode_one_chunk_ahead
from wmpo_ray.world_models.diffusion import DiffusionWorldModel

__all__ = ["collect", "demos", "evaluate", "gate", "optimize", "policy", "reward_model", "world_model"]


def demos(context: RunContext) -> dict[str, Any]:
    """Expert demonstrations."""
    config = context.config
    environment = make_environment(config.environment)
    seeds = start_seeds("demos", config.demos.num_trajectories, config.seed)
    episodes = rollout_expert(environment, seeds, config.demos.action_noise, (config.seed, "demos"))
    save_episodes(context.folder.trajectories / "demos.parquet", episodes)
    return {
        "num": len(episodes),
        "success": float(episodes.success.mean()),
        "mean_length": float(episodes.lengths.mean()),
    }


def policy(context: RunContext) -> dict[str, Any]:
    """Behaviour cloning of the demonstrations, or a pretrained policy as it is."""
    if context.config.policy.cloning.steps:
        return clone(context)
    network = pretrained_policy(context.config)
    with atomic_directory(context.model("base-policy")) as folder:
        network.save_pretrained(folder)
    return {"pretrained": context.config.policy.pretrained}


def collect(context: RunContext) -> dict[str, Any]:
    """P real episodes of the base policy, and further ones on held-out starts that only judge, never train."""
    config = context.config
    network = load_policy(config, str(context.model("base-policy")))
    environment = make_environment(config.environment)
    figures: dict[str, Any] = {}
    sources: tuple[tuple[Split, str, int], ...] = (
        ("collect", "collect", config.collect.num_trajectories),
        ("gate", "held-out", config.gate.num_trajectories),
    )
    for split, name, count in sources:
        with context.reporter.bar(f"real episodes ({name})", count) as advance:
            episodes = rollout_policy(
                network,
                environment,
                start_seeds(split, count, config.seed),
                config.collect.temperature,
                (config.seed, split),
                progress=advance,
            )
        save_episodes(context.folder.trajectories / f"{name}.parquet", episodes)
        figures |= {f"num_{split}": count, f"success_{split}": float(episodes.success.mean())}
    figures["failures"] = failure_rates(episodes)
    return figures


def failure_rates(episodes: Episodes) -> dict[str, float]:
    """Share of episodes that failed and showed each failure mode on the way."""
    return {name: float((flags & ~episodes.success).mean()) for name, flags in episodes.failures.items()}


def reward_model(context: RunContext) -> dict[str, Any]:
    """Clip classifier on demonstrations, P and P as the world model shows it; threshold on validation; F1 held out.

    With `reward.steps` 0 the pretrained one as it is, but for its threshold.
    """
    config = context.config
    train, validation = context.collected()
    expert, held_out = context.episodes("demos"), context.episodes("held-out")
    sources, judged = [expert, train], [validation]
    if config.world_model.is_learned:
        world = load_world_model(config, str(context.model("world-model")))
        assert isinstance(world, DiffusionWorldModel)
        if config.reward.steps:
            sources.append(decode_one_chunk_ahead(world, train, config.seed))
        judged.append(decode_one_chunk_ahead(world, validation, config.seed))
    figures: dict[str, Any] = {"pretrained": config.reward.pretrained}
    if config.reward.steps:
        figures = train_rewards(context, concatenate_episodes(sources))
    else:
        pretrained_reward_model(config).save(context.model("reward-model"))
    model = load_reward_model(config, str(context.model("reward-model")))

    def best(episodes: Episodes) -> np.ndarray:
        return best_probabilities(
            model, episodes.frames, episodes.instructions, episodes.lengths, config.reward.min_steps
        )

    truth = np.concatenate([episodes.success for episodes in judged])
    chosen, curve = choose_threshold(np.concatenate([best(episodes) for episodes in judged]), truth)
    model.threshold = config.reward.threshold or chosen
    report = binary_report(best(held_out) >= model.threshold, held_out.success)
    model.save(context.model("reward-model"))
    return {**figures, "threshold": model.threshold, "threshold_curve": curve, **report}


def evaluate(context: RunContext) -> dict[str, Any]:
    """Base and final policy in the real environment on held-out start states."""
    config = context.config
    environment = make_environment(config.environment)
    seeds = start_seeds("evaluate", config.evaluation.num_starts, config.seed)
    figures: dict[str, Any] = {}
    results = {}
    for label, name in (("base", "base-policy"), ("final", "policy")):
        network = load_policy(config, str(context.model(name)))
        with context.reporter.bar(f"real episodes ({label})", len(seeds)) as advance:
            episodes = rollout_policy(
                network, environment, seeds, config.evaluation.temperature, (config.seed, "evaluate"), progress=advance
            )
        low, high = wilson_interval(int(episodes.success.sum()), len(episodes))
        results[label] = {"value": float(episodes.success.mean()), "low": low, "high": high, "num": len(episodes)}
        figures[f"success_{label}"] = results[label]["value"]
        figures[f"failures_{label}"] = failure_rates(episodes)
        figures[f"success_length_{label}"] = (
            float(episodes.lengths[episodes.success].mean()) if episodes.success.any() else None
        )
        save_videos(context, label, episodes)
    context.folder.set_result(results["base"], results["final"])
    return figures


def save_videos(context: RunContext, name: str, episodes: Episodes, each: int = 4) -> None:
    """A few successes and failures for the report."""
    rows = np.concatenate([np.flatnonzero(episodes.success)[:each], np.flatnonzero(~episodes.success)[:each]])
    chosen = episodes.rows(rows)
    context.folder.videos.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        context.folder.videos / f"{name}.npz",
        frames=chosen.frames,
        success=chosen.success,
        lengths=chosen.lengths,
        instructions=np.array(json.dumps(chosen.instructions)),
    )
