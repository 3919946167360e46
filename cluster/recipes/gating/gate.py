"""The gate before `optimize`: checks that the world model is accurate enough to train in."""

from __future__ import annotations

import json
import logging
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np

from cluster.events.event_log import emit
from cluster.recipes.context import RunContext
from cluster.recipes.gating.gate_replays import FILES, judged, replayed
from cluster.recipes.simulator_needs import executes_other_actions
from cluster.recipes.stage import Stage
from cluster.recording.recorder import EpisodeRecorder
from wmpo_ray.config.run import GateConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Episodes, Frames, Scores
from wmpo_ray.data.episodes import batches_of_rows
from wmpo_ray.environments.task_of_start import Tasks, tasks_of
from wmpo_ray.registry import load_reward_model
from wmpo_ray.rollout.fidelity import binary_report
from wmpo_ray.rollout.held_out_judge import detect_in_both
from wmpo_ray.rollout.judge import VideoJudge, refute
from wmpo_ray.statistics.agreement import agreement_by_step, safe_horizon

UNMEASURED = "no held-out episode is of it; raise gate.num_trajectories or its weight in environment.task_weights"


def gate(context: RunContext) -> dict[str, Any]:
    """Replay held-out real actions in imagination and compare the labels and events with reality.

    Of several tasks each must keep the bounds: one that does not is left out of `optimize` and of the final comparison.
    Raises UserError with the metrics and advice if a bound is missed, by all tasks, unless forced.
    """
    config, held_out = context.config, context.episodes("held-out")
    judge = VideoJudge(load_reward_model(config, str(context.model("reward-model"))), config.reward.min_steps)
    with replayed(context, "world-model", held_out, "held-out") as videos, context.recorder("gate") as recorder:
        scores = plain = judged(judge, videos)
        if config.reward.verify.enabled:
            scores = verified(context, scores, held_out, judge)
        replays = Replays(held_out, scores, plain.success, _event_agreement(recorder, held_out, videos))
        metrics = replays.metrics(config.gate)
        counterfactual = counterfactuals(context, recorder, held_out, judge)
        _save_side_by_side(context, held_out, videos.frames, scores.success)
    tasks = tasks_of(config.environment)
    by_task = {} if tasks is None else replays.of_tasks(tasks, config.gate)
    misses, missed = verdict(metrics, by_task, config.gate)
    if misses and not context.force:
        raise UserError(
            f"the imagined world is not accurate enough to learn in: {'; '.join(misses)} ({metrics['num']} held-out "
            f"replays, {metrics['false_positives']} false positives, {metrics['false_negatives']} false negatives). "
            "Align longer (world_model.alignment.steps), collect more (collect.num_trajectories), pretrain on more "
            "play (pretrain.steps), or continue anyway with --force; --resume repeats only the stages that "
            "depend on changed settings"
        )
    left_out = {} if context.force else missed
    for name, why in left_out.items():
        emit("task.left_out", f"task {name} is left out: {why}", logging.WARNING, task=name)
    metrics |= counterfactual | {"passed": not misses, "bounds": config.gate.model_dump()}
    return metrics | ({"tasks": by_task, "missed": missed, "left_out": left_out} if by_task else {})


def verdict(
    metrics: dict[str, Any], by_task: dict[str, dict[str, Any]], config: GateConfig
) -> tuple[list[str], dict[str, str]]:
    """(what stops the run, why each task that is left out is so): of several tasks, all of them must miss a bound.

    A task without metrics was not measured, and is left out.
    """
    if not by_task:
        return missed_bounds(metrics, config), {}
    misses = {name: missed_bounds(own, config) if own else [UNMEASURED] for name, own in by_task.items()}
    left_out = {name: "; ".join(missed) for name, missed in misses.items() if missed}
    stops = len(left_out) == len(by_task)
    return [f"{name}: {missed}" for name, missed in left_out.items()] if stops else [], left_out


class Replays(NamedTuple):
    """What came of held-out episodes, really and in imagination."""

    episodes: Episodes
    scores: Scores
    unverified: np.ndarray  # [M] bool: success before a second world model was asked
    events: dict[str, np.ndarray]  # event -> [M] bool: seen in both worlds, or in neither

    def metrics(self, config: GateConfig) -> dict[str, Any]:
        scores, real = self.scores, self.episodes.success
        known = np.ones(len(real), bool) if scores.known is None else scores.known
        report, plain = binary_report(scores.success[known], real[known]), binary_report(self.unverified, real)
        events = {f"{event}_agreement": float(agreed.mean()) for event, agreed in self.events.items()}
        return (
            _label_metrics(report, plain) | events | _step_agreement(scores, self.episodes, config.min_label_agreement)
        )

    def of_tasks(self, tasks: Tasks, config: GateConfig) -> dict[str, dict[str, Any]]:
        """The metrics of each task; none of one that there is no episode of."""
        names = tasks.of_instructions(self.episodes.instructions)
        return {name: self.rows(names == name).metrics(config) if name in names else {} for name in tasks.names}

    def rows(self, index: np.ndarray) -> Replays:
        """Those at `index` [M] bool."""
        columns = {each.name: getattr(self.scores, each.name) for each in fields(Scores)}
        chosen: dict[str, Any] = {name: None if of is None else of[index] for name, of in columns.items()}
        events = {event: agreed[index] for event, agreed in self.events.items()}
        return Replays(self.episodes.rows(index), Scores(**chosen), self.unverified[index], events)


def verified(context: RunContext, scores: Scores, held_out: Episodes, judge: VideoJudge) -> Scores:
    """The decisions after the second world model has replayed the successes."""
    rows, confirmed = np.flatnonzero(scores.success), np.zeros(0, bool)
    if len(rows):
        with replayed(context, "verifier", held_out.rows(rows), "successes") as videos:
            confirmed = judged(judge, videos).success
    return refute(scores, rows, confirmed, context.config.reward.verify.disputed)


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
    num = min(context.config.gate.num_counterfactuals, len(episodes))
    if not num:
        return {}
    first = episodes.rows(slice(num))
    actions = np.roll(first.actions, 1, axis=0)
    real = recorder.execute(first.seeds, actions)
    with replayed(context, "world-model", replace(first, actions=actions), "other actions") as videos:
        imagined = judged(judge, videos).success
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
    for key in ("grasp_agreement", "placement_agreement", "marked_agreement"):
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


def _event_agreement(recorder: EpisodeRecorder, episodes: Episodes, videos: Episodes) -> dict[str, np.ndarray]:
    """Where [M] bool the events that the environment can read from pixels agree, over the real length of each episode."""
    if "events" not in recorder.abilities:
        return {}
    agreed: dict[str, list[np.ndarray]] = {}  # event -> [M] bool of each batch
    for rows in batches_of_rows(episodes.frames.shape):
        part, imagined = episodes.rows(rows), np.asarray(videos.rows(rows).frames)
        found, seen = detect_in_both(recorder.detect_events, np.asarray(part.frames), imagined, part.lengths)
        for event, flags in found.items():
            agreed.setdefault(event, []).append(flags == seen[event])
    return {event: np.concatenate(parts) for event, parts in agreed.items()}


def _save_side_by_side(
    context: RunContext, episodes: Episodes, imagined: np.ndarray | Frames, success: np.ndarray
) -> None:
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
        imagined=imagined[rows],
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
    state=(f"trajectories/{FILES.format('*')}.parquet",),
    settings=("gate", "reward.min_steps", "reward.verify", "rollout.chunk_length"),
    simulates=executes_other_actions,
)
