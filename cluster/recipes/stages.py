"""The stages up to the gate and the last one: plain functions of the run's context that return their figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from wmpo_ray.data.episodes import concatenate_episodes, parts_of
from wmpo_ray.data.store import episode_writer, load_episodes
from wmpo_ray.registry import (
    load_policy,
    load_reward_model,
    load_world_model,
    make_environment,
    pretrained_policy,
    pretrained_reward_model,
)
from wmpo_ray.reward_models.decisions import best_probabilities
from wmpo_ray.rollout.evaluation import expert_batches, rollout_batches, rollout_outcomes
from wmpo_ray.rollout.fidelity import binary_report, one_chunk_ahead
from wmpo_ray.world_models.diffusion import DiffusionWorldModel

__all__ = ["collect", "demos", "evaluate", "gate", "optimize", "policy", "reward_model", "world_model"]


def demos(context: RunContext) -> dict[str, Any]:
    """Expert demonstrations."""
    config = context.config
    environment = make_environment(config.environment)
    seeds = start_seeds("demos", config.demos.num_trajectories, config.seed)
    with episode_writer(context.folder.trajectories / "demos.parquet") as writer:
        for part in expert_batches(environment, seeds, config.demos.action_noise, (config.seed, "demos")):
            writer.append(part)
    episodes = context.episodes("demos")
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
        path = context.folder.trajectories / f"{name}.parquet"
        with context.reporter.bar(f"real episodes ({name})", count) as advance, episode_writer(path) as writer:
            seeds = start_seeds(split, count, config.seed)
            for part in rollout_batches(
                network, environment, seeds, config.collect.temperature, (config.seed, split), progress=advance
            ):
                writer.append(part)
        episodes = context.episodes(name)
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
    world: DiffusionWorldModel | None = None
    if config.world_model.kind != "simulator":
        loaded = load_world_model(config, str(context.model("world-model")))
        assert isinstance(loaded, DiffusionWorldModel)
        world = loaded
    figures: dict[str, Any] = {"pretrained": config.reward.pretrained}
    if config.reward.steps:
        with imagined_episodes(context, world, train) as imagined:
            figures = train_rewards(context, concatenate_episodes([expert, train, *imagined]))
    else:
        pretrained_reward_model(config).save(context.model("reward-model"))
    model = load_reward_model(config, str(context.model("reward-model")))

    def best(parts: Iterable[Episodes]) -> np.ndarray:
        """Highest probabilities [M], a batch of episodes in memory at a time."""
        min_steps = config.reward.min_steps
        return np.concatenate(
            [best_probabilities(model, np.asarray(p.frames), p.instructions, p.lengths, min_steps) for p in parts]
        )

    judged = [best(parts_of(validation))]
    if world is not None:
        judged.append(best(one_chunk_ahead(world, validation, config.seed)))
    chosen, curve = choose_threshold(np.concatenate(judged), np.concatenate([validation.success] * len(judged)))
    model.threshold = config.reward.threshold or chosen
    report = binary_report(best(parts_of(held_out)) >= model.threshold, held_out.success)
    model.save(context.model("reward-model"))
    return {**figures, "threshold": model.threshold, "threshold_curve": curve, **report}


@contextmanager
def imagined_episodes(
    context: RunContext, world: DiffusionWorldModel | None, train: Episodes
) -> Iterator[Sequence[Episodes]]:
    """P as the world model shows it, in a file for as long as the block runs; nothing without a diffusion model."""
    if world is None:
        yield []
        return
    path = context.folder.trajectories / "one-chunk-ahead.parquet"
    with episode_writer(path) as writer:
        for part in one_chunk_ahead(world, train, context.config.seed):
            writer.append(part)
    try:
        yield [load_episodes(path)]
    finally:
        path.unlink()


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
            episodes, videos = rollout_outcomes(
                network, environment, seeds, config.evaluation.temperature, (config.seed, "evaluate"), progress=advance
            )
        low, high = wilson_interval(int(episodes.success.sum()), len(episodes))
        results[label] = {"value": float(episodes.success.mean()), "low": low, "high": high, "num": len(episodes)}
        figures[f"success_{label}"] = results[label]["value"]
        figures[f"failures_{label}"] = failure_rates(episodes)
        figures[f"success_length_{label}"] = (
            float(episodes.lengths[episodes.success].mean()) if episodes.success.any() else None
        )
        save_videos(context, label, videos)
    context.folder.set_result(results["base"], results["final"])
    return figures


def save_videos(context: RunContext, name: str, chosen: Episodes) -> None:
    """A few successes and failures for the report."""
    context.folder.videos.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        context.folder.videos / f"{name}.npz",
        frames=np.asarray(chosen.frames),
        success=chosen.success,
        lengths=chosen.lengths,
        instructions=np.array(json.dumps(chosen.instructions)),
    )
