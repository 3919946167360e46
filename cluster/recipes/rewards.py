"""The stage `reward-model`: trains a clip classifier and chooses its threshold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from cluster.recipes.checks import check_pretrained, check_workers
from cluster.recipes.context import RunContext
from cluster.recipes.stage import Stage
from cluster.recipes.trainings import run_trainings
from learners.supervised.jobs import EpisodeSource, RewardJob, Training
from learners.supervised.reward_training import clips_to_learn
from learners.supervised.thresholds import (
    Curve,
    Judged,
    check_failures,
    choose_bounded_threshold,
    choose_threshold,
    false_positive_bound,
)
from learners.supervised.vlm_calibration import calibrate
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import World
from wmpo_ray.core.runtime_settings import process_device
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.episodes import concatenate_episodes, parts_of
from wmpo_ray.data.store import episode_writer, load_episodes
from wmpo_ray.environments.augmentation import augmentation_of
from wmpo_ray.registry import load_reward_model, load_world_model, pretrained_reward_model
from wmpo_ray.reward_models.decisions import best_probabilities
from wmpo_ray.reward_models.progress_report import KnowsProgress, progress_report
from wmpo_ray.reward_models.vlm_settings import VlmRewardConfig
from wmpo_ray.rollout.fidelity import binary_report, one_chunk_ahead
from wmpo_ray.statistics.agreement import calibration


def reward_model(context: RunContext) -> dict[str, Any]:
    """Train on demonstrations, real and imagined episodes; choose the threshold on validation; measure held-out F1.

    With `reward.steps` 0, only the threshold of the pretrained model is chosen, and the scale of answers.
    """
    config = context.config
    train, validation = context.collected()
    expert, held_out = context.episodes("demos"), context.episodes("held-out")
    loaded = load_world_model(config, str(context.model("world-model")))
    world = loaded if "imagines" in loaded.abilities else None
    metrics: dict[str, Any] = {"pretrained": config.reward.pretrained}
    if max_rate := config.reward.max_false_positive_rate:
        check_failures([Judged(np.zeros(len(validation)), validation.success)], max_rate)
    if config.reward.steps or calibrates(config):
        with imagined_episodes(context, world, train) as imagined:
            episodes = concatenate_episodes([expert, train, *imagined])
            metrics |= train_classifier(context, episodes) if config.reward.steps else scale_answers(context, episodes)
    else:
        pretrained_reward_model(config).save(context.model("reward-model"))
    model = load_reward_model(config, str(context.model("reward-model")))

    def best(parts: Iterable[Episodes]) -> np.ndarray:
        """Highest probability of each episode [M], with one batch of episodes in memory at a time."""
        min_steps = config.reward.min_steps
        return np.concatenate(
            [best_probabilities(model, np.asarray(p.frames), p.instructions, p.lengths, min_steps) for p in parts]
        )

    judged = [Judged(best(parts_of(validation)), validation.success)]
    if world is not None:
        judged.append(Judged(best(one_chunk_ahead(world, validation, config.seed)), validation.success))
    chosen, curve = choose(judged, max_rate)
    model.threshold = config.reward.threshold or chosen
    unseen = best(parts_of(held_out))
    report = binary_report(unseen >= model.threshold, held_out.success)
    model.save(context.model("reward-model"))
    trust = trust_in(Judged(unseen, held_out.success), model.threshold)
    if isinstance(model, KnowsProgress) and model.knows_progress:
        trust["progress"] = progress_report(model, parts_of(held_out))
    return {**metrics, "threshold": model.threshold, "threshold_curve": curve, **report, **trust}


def choose(judged: Sequence[Judged], max_rate: float) -> tuple[float, Curve]:
    """The threshold with the best F1 on all of these episodes, and its curve; of few false positives, where asked for."""
    if max_rate:
        return choose_bounded_threshold(judged, max_rate)
    return choose_threshold(
        np.concatenate([one.best for one in judged]), np.concatenate([one.success for one in judged])
    )


def trust_in(judged: Judged, threshold: float) -> dict[str, Any]:
    """Whether probabilities of held-out episodes can be read as such, and how often a failure counts as a success."""
    reliability = calibration(judged.best, judged.success)
    failures = judged.best[~judged.success]
    return {
        "calibration_error": reliability.error,
        "reliability_curve": reliability.curve,
        "false_positive_rate": float((failures >= threshold).mean()) if len(failures) else None,
        "false_positive_bound": false_positive_bound(judged, threshold),
        "num_failures": len(failures),
    }


@contextmanager
def imagined_episodes(context: RunContext, world: World | None, train: Episodes) -> Iterator[Sequence[Episodes]]:
    """The training episodes as the world model imagines them, in a temporary file; empty without a world model."""
    if world is None:
        yield []
        return
    path = context.trajectory_file("one-chunk-ahead")
    with episode_writer(path) as writer:
        for part in one_chunk_ahead(world, train, context.config.seed):
            writer.append(part)
    try:
        yield [load_episodes(path)]
    finally:
        path.unlink()


def train_classifier(context: RunContext, episodes: Episodes) -> dict[str, Any]:
    """Train the reward model and save it in `models`; its threshold is chosen later."""
    config, out = context.config, context.model("reward-model").absolute()
    clips_to_learn(config.reward, episodes)  # raises before any process is started
    texts = tuple(sorted(set(episodes.instructions)))
    instructions = texts if len(texts) > 1 else ()

    def describe(source: EpisodeSource) -> list[Training]:
        job = RewardJob(config, source.put("episodes", episodes), instructions, out)
        return [Training("reward-model", "reward model", "reward", config.reward, "learner", job)]

    return run_trainings(context, describe)["reward-model"]


def calibrates(config: Config) -> bool:
    return isinstance(config.reward, VlmRewardConfig) and config.reward.calibration_clips > 0


def scale_answers(context: RunContext, episodes: Episodes) -> dict[str, Any]:
    """Calibrate a pretrained vision-language model on the clips that another would be trained on, and save it."""
    config, model = context.config, cast(Any, pretrained_reward_model(context.config))
    assert isinstance(config.reward, VlmRewardConfig)
    model.network.to(process_device(config.cluster.device))
    metrics = calibrate(model, config.reward, episodes, config.seed)
    if not (model.slope or context.force):
        odds = (metrics["success_log_odds"], metrics["failure_log_odds"])
        raise UserError(
            f"the answers of {config.reward.pretrained} say nothing of the outcome, or the opposite: their log-odds are "
            f"{odds[0]:.2f} on average for successes and {odds[1]:.2f} for failures, on {metrics['calibration_clips']} "
            "clips. Change reward.prompt, reward.num_frames or reward.pretrained, or continue anyway with --force"
        )
    model.save(context.model("reward-model"))
    return metrics


def check_vlm(folder: Path) -> None:
    """Raises UserError for a vision-language model that could not be loaded."""
    from wmpo_ray.reward_models.vlm_files import check_files  # imports transformers

    try:
        check_files(folder)
    except UserError as error:
        raise UserError(f"reward.pretrained: {error}") from error


def check(config: Config, serial: bool) -> None:
    if isinstance(config.reward, VlmRewardConfig):
        check_vlm(Path(config.reward.pretrained))
    else:
        check_pretrained("reward.pretrained", config.reward.pretrained)
    augmentation_of(config)
    check_workers(config, "reward", config.reward, serial)


REWARD_MODEL = Stage(
    "reward-model",
    reward_model,
    needs=("demos", "collect", "world-model"),
    makes=("models/reward-model", "curves/reward-model.jsonl"),
    settings=(
        "reward.kind",
        "reward.pretrained",
        "reward.threshold",
        "reward.max_false_positive_rate",
        "reward.clip_length",
        "reward.min_steps",
        "reward.network",
        "reward.progress_weight",
        *(f"reward.{key}" for key in ("num_frames", "prompt", "yes", "no", "compute_dtype", "calibration_clips")),
        "reward.steps",
        "reward.batch_size",
        "reward.learning_rate",
        "reward.weight_decay",
        "reward.pixel_noise",
        "reward.success_margin",
        "reward.swapped_share",
        "augmentation",
        "collect.validation_share",
    ),
    state=("checkpoints/reward-model",),
    check=check,
)
