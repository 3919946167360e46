"""The stages up to the gate and the last one: plain functions of the run's context that return their figures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from cluster.context import RunContext
from cluster.events import emit
from cluster.gate import gate
from cluster.optimization import optimize
from cluster.world_model_stage import world_model
from learners.policy_cloning import clone_policy
from learners.reward_trainer import choose_threshold, train_reward_model
from learners.training_state import TrainingCheckpoints
from wmpo_ray.data.trajectory_store import save_episodes
from wmpo_ray.evaluation import concatenate_episodes, rollout_expert, rollout_policy
from wmpo_ray.fidelity import binary_report, decode_one_chunk_ahead
from wmpo_ray.files import atomic_directory
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.registry import load_policy, make_environment
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.seeding import seed_for
from wmpo_ray.starts import Split, start_seeds
from wmpo_ray.statistics import wilson_interval
from wmpo_ray.types import Episodes
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
    """Behaviour cloning of the demonstrations."""
    config, episodes = context.config, context.episodes("demos")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "policy"))
        network = TinyPolicy(
            TinyPolicyHFConfig(
                **config.policy.network.model_dump(),
                frame_size=episodes.frames.shape[2],
                chunk_length=config.rollout.chunk_length,
                action_dim=episodes.actions.shape[-1],
                vocabulary=vocabulary_of(episodes.instructions),
            )
        )
    with context.reporter.bar("behaviour cloning", config.policy.cloning.steps) as advance:
        figures = clone_policy(
            network, episodes, config.policy.cloning, config.seed, advance, training_checkpoints(context, "policy")
        )
    with atomic_directory(context.model("base-policy")) as folder:
        network.save_pretrained(folder)
    return figures


def training_checkpoints(context: RunContext, name: str) -> TrainingCheckpoints:
    """Where the stage saves its training, with what is to be told about it going to the person."""
    settings = context.config.checkpoint
    return TrainingCheckpoints(
        context.folder.training_checkpoints(name),
        settings.every_training_steps,
        settings.keep,
        lambda message: emit("checkpoint.resumed", message, stage=name),
    )


def collect(context: RunContext) -> dict[str, Any]:
    """P real episodes of the base policy, and further ones on held-out starts that only judge, never train."""
    config = context.config
    network = load_policy(config.policy.kind, str(context.model("base-policy")))
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
    """Clip classifier on demonstrations, P and P as the world model shows it; threshold on validation; F1 held out."""
    config = context.config
    train, validation = context.collected()
    expert, held_out = context.episodes("demos"), context.episodes("held-out")
    sources, judged = [expert, train], [validation]
    if config.world_model.kind != "simulator":
        world = DiffusionWorldModel.load(context.model("world-model"))
        sources.append(decode_one_chunk_ahead(world, train, config.seed))
        judged.append(decode_one_chunk_ahead(world, validation, config.seed))
    instructions = sorted(set(expert.instructions) | set(train.instructions))
    model = VideoMAERewardModel.create(
        config.reward, train.frames.shape[2], instructions if len(instructions) > 1 else (), config.seed
    )
    with context.reporter.bar("reward model", config.reward.steps) as advance:
        figures: dict[str, Any] = train_reward_model(
            model,
            config.reward,
            concatenate_episodes(sources),
            config.seed,
            advance,
            training_checkpoints(context, "reward-model"),
        )
    best = np.concatenate([best_probability(model, episodes, config.reward.min_steps) for episodes in judged])
    truth = np.concatenate([episodes.success for episodes in judged])
    model.threshold, curve = choose_threshold(best, truth)
    report = binary_report(
        best_probability(model, held_out, config.reward.min_steps) >= model.threshold, held_out.success
    )
    model.save(context.model("reward-model"))
    return {**figures, "threshold": model.threshold, "threshold_curve": curve, **report}


def best_probability(model: VideoMAERewardModel, episodes: Episodes, min_steps: int) -> np.ndarray:
    """Highest window probability of each episode, over windows that show real steps only."""
    probabilities = model.probabilities(episodes.frames, episodes.instructions)
    ends = np.arange(probabilities.shape[1]) + model.clip_length - 1
    judged = (ends[None] <= episodes.lengths[:, None]) & (ends[None] >= min_steps)
    return np.where(judged, probabilities, 0.0).max(1)


def evaluate(context: RunContext) -> dict[str, Any]:
    """Base and final policy in the real environment on held-out start states."""
    config = context.config
    environment = make_environment(config.environment)
    seeds = start_seeds("evaluate", config.evaluation.num_starts, config.seed)
    figures: dict[str, Any] = {}
    results = {}
    for label, name in (("base", "base-policy"), ("final", "policy")):
        network = load_policy(config.policy.kind, str(context.model(name)))
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
