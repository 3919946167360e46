"""The gate before `optimize`: checks that the world model is accurate enough to train in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from cluster.recipes.context import RunContext
from cluster.recipes.stage import Stage
from cluster.recording.recorder import EpisodeRecorder
from wmpo_ray.config.run import GateConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Episodes, Scores, Videos
from wmpo_ray.registry import load_reward_model, load_world_model
from wmpo_ray.rollout.fidelity import binary_report, replay_videos, starts_of
from wmpo_ray.rollout.held_out_judge import detect_in_both
from wmpo_ray.rollout.judge import VideoJudge, verify
from wmpo_ray.statistics.agreement import agreement_by_step, safe_horizon


def gate(context: RunContext) -> dict[str, Any]:
    """Replay held-out real actions in imagination and compare the labels and events with reality.

    Raises UserError with the metrics and advice if a bound is missed, unless forced.
    """
    config, held_out = context.config, context.episodes("held-out")
    plain_judge = VideoJudge(load_reward_model(config, str(context.model("reward-model"))), config.reward.min_steps)
    starts = starts_of(held_out)

    def imagine(name: str, rows: np.ndarray) -> np.ndarray:
        world = load_world_model(config, str(context.model(name)))  # one at a time: two may not fit
        with context.reporter.bar(f"replaying in the {name}", len(rows)) as advance:
            actions = held_out.actions[rows]
            return replay_videos(world, [starts[i] for i in rows], actions, config.seed, progress=advance)

    frames = imagine("world-model", np.arange(len(held_out)))
    videos = Videos(frames, held_out.instructions, held_out.actions, tuple(starts))
    scores = plain_judge.judge(videos)
    plain = binary_report(scores.success, held_out.success)
    if config.reward.verify.enabled:
        disputed = config.reward.verify.disputed
        scores = verify(scores, videos, plain_judge, lambda videos, rows: imagine("verifier", rows), disputed)
    known = np.ones(len(held_out), bool) if scores.known is None else scores.known
    report = binary_report(scores.success[known], held_out.success[known])
    with context.recorder("gate") as recorder:
        metrics = _label_metrics(report, plain) | _event_agreement(recorder, held_out, frames)
        metrics |= _step_agreement(scores, held_out, config.gate.min_label_agreement)
        metrics |= counterfactuals(context, recorder, held_out, plain_judge)
    misses = missed_bounds(metrics, config.gate)
    metrics |= {"passed": not misses, "bounds": config.gate.model_dump()}
    _save_side_by_side(context, held_out, frames, scores.success)
    if misses and not context.force:
        raise UserError(
            f"the imagined world is not accurate enough to learn in: {'; '.join(misses)} ({report['num']} held-out "
            f"replays, {report['false_positives']} false positives, {report['false_negatives']} false negatives). "
            "Align longer (world_model.alignment.steps), collect more (collect.num_trajectories), pretrain on more "
            "play (pretrain.steps), or continue anyway with --force; --resume repeats only the stages that "
            "depend on changed settings"
        )
    return metrics


def _label_metrics(report: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """plain: the report before verification."""
    return {
        "label_agreement": report["agreement"],
        "f1": report["f1"],
        "false_positives": report["false_positives"],
        "false_negatives": report["false_negatives"],
        "imagined_success": report["predicted_rate"],
        "real_success": report["true_rate"],
        "num": report["num"],
        "unverified_label_agreement": plain["agreement"],
    }


def _step_agreement(scores: Scores, episodes: Episodes, bound: float) -> dict[str, Any]:
    """Agreement of the outcome by each step, and for how many steps it stays above a bound."""
    horizon = episodes.actions.shape[1]
    agreement = agreement_by_step(scores.success, scores.finish_step, episodes.success, episodes.lengths, horizon)
    return {"agreement_by_step": agreement.tolist(), "safe_horizon": safe_horizon(agreement, bound)}


def counterfactuals(
    context: RunContext, recorder: EpisodeRecorder, episodes: Episodes, judge: VideoJudge
) -> dict[str, Any]:
    """Give each start the actions of another episode: a world that has learned what actions do changes its outcome.

    The environment executes them as well, on held-out start states that are not counted in P. Empty where no world model
    is learned.
    """
    config, num = context.config, min(context.config.gate.num_counterfactuals, len(episodes))
    if not num:
        return {}
    starts = starts_of(episodes.rows(slice(num)))
    actions = np.roll(episodes.actions[:num], 1, axis=0)
    real = recorder.execute(episodes.seeds[:num], actions)
    world = load_world_model(config, str(context.model("world-model")))
    with context.reporter.bar("other actions, imagined", num) as advance:
        frames = replay_videos(world, starts, actions, config.seed, progress=advance)
    texts = episodes.instructions[:num]
    imagined = judge.judge(Videos(frames, texts, actions, tuple(starts))).success
    report = binary_report(imagined, real)
    return {
        "counterfactual_num": num,
        "counterfactual_agreement": report["agreement"],
        "counterfactual_imagined_success": report["predicted_rate"],
        "counterfactual_real_success": report["true_rate"],
    }


def missed_bounds(metrics: dict[str, Any], config: GateConfig) -> list[str]:
    """A message for every bound that is missed."""
    misses = []
    for key, bound in (("label_agreement", config.min_label_agreement), ("f1", config.min_f1)):
        if metrics[key] < bound:
            misses.append(f"{key} {metrics[key]:.3f} < gate.min_{key}={bound}")
    for key in ("grasp_agreement", "placement_agreement"):
        if metrics.get(key, 1.0) < config.min_event_agreement:
            misses.append(f"{key} {metrics[key]:.3f} < gate.min_event_agreement={config.min_event_agreement}")
    wrong = metrics["false_positives"] / max(metrics["num"], 1)
    if wrong > config.max_false_positives:
        misses.append(
            f"false positives {wrong:.3f} of the replays > gate.max_false_positives={config.max_false_positives}"
        )
    if metrics["safe_horizon"] < config.min_safe_horizon:
        misses.append(f"safe horizon {metrics['safe_horizon']} steps < gate.min_safe_horizon={config.min_safe_horizon}")
    gap = abs(metrics["imagined_success"] - metrics["real_success"])
    if gap > config.max_success_gap:
        misses.append(f"imagined and real success differ by {gap:.3f} > gate.max_success_gap={config.max_success_gap}")
    return misses


def _event_agreement(recorder: EpisodeRecorder, episodes: Episodes, videos: np.ndarray) -> dict[str, float]:
    """Agreement of the events that the environment can read from pixels, over the real length of each episode."""
    if "events" not in recorder.abilities:
        return {}
    real, imagined = detect_in_both(recorder.detect_events, episodes.frames, videos, episodes.lengths)
    return {f"{event}_agreement": float((real[event] == imagined[event]).mean()) for event in real}


def _save_side_by_side(context: RunContext, episodes: Episodes, videos: np.ndarray, success: np.ndarray) -> None:
    """A few replays for the report, disagreements included."""
    agree = success == episodes.success
    rows = np.concatenate(
        [
            np.flatnonzero(agree & episodes.success)[:3],
            np.flatnonzero(agree & ~episodes.success)[:3],
            np.flatnonzero(~agree)[:2],
        ]
    )
    np.savez_compressed(
        context.videos / "side_by_side.npz",
        real=episodes.frames[rows],
        imagined=videos[rows],
        real_success=episodes.success[rows],
        imagined_success=success[rows],
        lengths=episodes.lengths[rows],
        instructions=np.array(json.dumps([episodes.instructions[i] for i in rows])),
    )


GATE = Stage(
    "gate",
    gate,
    needs=("collect", "world-model", "reward-model"),
    makes=("videos/side_by_side.npz",),
    settings=("gate", "reward.min_steps", "reward.verify", "rollout.chunk_length"),
)
