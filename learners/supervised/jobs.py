"""The supervised trainings as jobs, from configuration and data to saved weights and metrics.

A job says how its training begins, what is measured before the first step, and what it leaves. Who runs its steps, an
actor (`training_actor.py`) or every worker of Ray Train with a share of every batch, makes no difference to it. Only
the worker with rank 0 saves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from learners.supervised.alignment import AlignmentTrainer
from learners.supervised.cloning import PolicyCloner
from learners.supervised.frame_training import ProgressTrainer
from learners.supervised.loop import SupervisedTraining, TrainingConfig, WorkerShare
from learners.supervised.pretraining import PretrainSource, PretrainTrainer, split_rows
from learners.supervised.reward_training import RewardTrainer
from wmpo_ray.config.run import Config
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.frame_sizes import frame_size_of
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.store import load_episodes
from wmpo_ray.environments.augmentation import augmentation_of
from wmpo_ray.registry import (
    create_policy,
    create_reward_model,
    has_ability,
    load_policy,
    load_reward_model,
    make_environment,
    pretrained_reward_model,
)
from wmpo_ray.reward_models.frame_settings import FrameRewardConfig
from wmpo_ray.rollout.held_out_judge import Detect, HeldOutJudge
from wmpo_ray.rollout.judge import VideoJudge
from wmpo_ray.world_models.model_card import write_card


class Job(Protocol):
    """A supervised training; it is pickled and sent to the process that runs it."""

    @property
    def num_steps(self) -> int: ...

    def begin(self, share: WorkerShare, device: torch.device) -> SupervisedTraining:
        """The training before its first step, with its data."""

    def measure_before(self, training: SupervisedTraining) -> None:
        """Compute baselines before the next step, after a checkpoint has been restored."""

    def finish(self, training: SupervisedTraining, seconds: float) -> dict[str, Any]:
        """Save the weights; returns the metrics, on workers those of rank 0. `seconds`: duration of the steps."""


class Training(NamedTuple):
    """Describes a training, independent of what runs it."""

    name: str  # name of its checkpoint folder
    description: str  # label of its progress bar
    section: str  # configuration section of its settings
    settings: TrainingConfig
    role: str  # role whose placement the actor uses
    job: Job


class EpisodeSource(Protocol):
    """Source of a training's episodes; the returned episodes can be sent to any process."""

    def read(self, name: str, path: Path) -> Episodes:
        """The episodes of a file. Raises `UserError` for one that is missing or damaged."""

    def put(self, name: str, episodes: Episodes) -> Episodes:
        """Episodes that this process can index."""


Describe = Callable[[EpisodeSource], list[Training]]


class FromFiles:
    """Episodes as they are, for trainings on an actor (implements `EpisodeSource`): it reads the frames of its batches
    from the file, on storage that all nodes see."""

    def __init__(self) -> None:
        self._read: dict[Path, Episodes] = {}

    def read(self, name: str, path: Path) -> Episodes:
        if path not in self._read:
            self._read[path] = load_episodes(path)
        return self._read[path]

    def put(self, name: str, episodes: Episodes) -> Episodes:
        return episodes


@dataclass(frozen=True)
class CloningJob:
    """The base policy, from `policy.pretrained` or from scratch."""

    config: Config
    demos: Episodes
    out: Path

    @property
    def num_steps(self) -> int:
        return self.config.policy.cloning.steps

    def begin(self, share: WorkerShare, device: torch.device) -> PolicyCloner:
        config = self.config
        cloner = PolicyCloner(
            begin_policy(config, self.demos, device), self.demos, config.policy.cloning, config.seed, share
        )
        cloner.network.train()
        return cloner

    def measure_before(self, training: SupervisedTraining) -> None:
        """No baseline needed."""

    def finish(self, training: SupervisedTraining, seconds: float) -> dict[str, Any]:
        policy: Any = training.network.eval()
        if training.share.rank == 0:
            with atomic_directory(self.out) as folder:
                policy.save_pretrained(folder)
        return {**training.numbers, "seconds": seconds}


def begin_policy(config: Config, demos: Episodes, device: torch.device) -> Policy:
    """The initial policy of cloning."""
    if config.policy.pretrained:
        return load_policy(config, config.policy.pretrained, training=True, device=device)
    return create_policy(config, demos, device=device)


@dataclass(frozen=True)
class AlignmentJob:
    """One world model, fine-tuned on rollouts and demonstrations.

    The last `num_held_out` episodes in `collected` are not among the rollouts: its error is measured on them.
    """

    config: Config
    name: str
    pretrained: str
    rollouts: Episodes
    demos: Episodes
    collected: Path
    num_held_out: int
    out: Path

    @property
    def num_steps(self) -> int:
        return self.config.world_model.alignment.steps

    def begin(self, share: WorkerShare, device: torch.device) -> AlignmentTrainer:
        return AlignmentTrainer(self.config, self.name, self.pretrained, self.rollouts, self.demos, device, share)

    def measure_before(self, training: SupervisedTraining) -> None:
        assert isinstance(training, AlignmentTrainer)
        if training.share.rank == 0:
            training.measure_before(self._held_out())

    def finish(self, training: SupervisedTraining, seconds: float) -> dict[str, Any]:
        assert isinstance(training, AlignmentTrainer)
        return training.finish(self.out, self._held_out()) if training.share.rank == 0 else {}

    def _held_out(self) -> Episodes:
        return load_episodes(self.collected).rows(slice(-self.num_held_out, None))


@dataclass(frozen=True)
class RewardJob:
    """The reward model, from `reward.pretrained` or from scratch; its threshold is chosen later."""

    config: Config
    episodes: Episodes
    instructions: tuple[str, ...]  # that a new model distinguishes
    out: Path

    @property
    def num_steps(self) -> int:
        return self.config.reward.steps

    def begin(self, share: WorkerShare, device: torch.device) -> RewardTrainer:
        config = self.config
        if config.reward.pretrained:
            model: Any = pretrained_reward_model(config)
        else:
            frame_size = frame_size_of(*self.episodes.frames.shape[2:4])
            model = create_reward_model(config, frame_size, self.instructions)
        model.network.to(device)
        augmentation = augmentation_of(config)
        learns_progress = isinstance(config.reward, FrameRewardConfig) and config.reward.progress_weight > 0
        kind = ProgressTrainer if learns_progress else RewardTrainer
        trainer = kind(model, config.reward, self.episodes, config.seed, share, augmentation)
        model.network.train()
        return trainer

    def measure_before(self, training: SupervisedTraining) -> None:
        """No baseline needed."""

    def finish(self, training: SupervisedTraining, seconds: float) -> dict[str, Any]:
        assert isinstance(training, RewardTrainer)
        model: Any = training.model
        model.network.eval()
        if training.share.rank == 0:
            model.save(self.out)
        return {**training.metrics(), "seconds": seconds}


@dataclass(frozen=True)
class PretrainJob:
    """A world model, trained on episodes and chosen on the way by others.

    held_out: those that choose; None: some of the first source, which are not trained on. data: what the card says of the
    episodes.
    """

    config: Config
    sources: tuple[PretrainSource, ...]
    held_out: Episodes | None
    data: dict[str, Any]
    out: Path

    @property
    def num_steps(self) -> int:
        return self.config.pretrain.steps

    def begin(self, share: WorkerShare, device: torch.device) -> PretrainTrainer:
        config, sources, held_out, has_labels = self.config, self.sources, self.held_out, True
        if held_out is None:
            episodes, contact, weight = sources[0]
            train, others = split_rows(len(episodes), config.pretrain.num_held_out, config.seed)
            rest = PretrainSource(episodes.rows(train), None if contact is None else contact[train], weight)
            sources, held_out, has_labels = (rest, *sources[1:]), episodes.rows(others), contact is None
        detect, judge = judges_of(config, device)
        judged = HeldOutJudge(held_out, seed_for(config.seed, "held-out"), detect, judge, has_labels)
        return PretrainTrainer(config, sources, judged, device, share)

    def measure_before(self, training: SupervisedTraining) -> None:
        assert isinstance(training, PretrainTrainer)
        training.measure_before()

    def finish(self, training: SupervisedTraining, seconds: float) -> dict[str, Any]:
        assert isinstance(training, PretrainTrainer)
        if training.share.rank != 0:
            return {}
        with atomic_directory(self.out) as folder:
            metrics = training.finish(folder) | {"seconds": seconds}
            settings = {key: value for key, value in self.config.model_dump(mode="json").items() if key in IN_CARD}
            write_card(folder, self.config.name, settings, self.data, metrics)
        return metrics


IN_CARD = ("seed", "environment", "pretrain", "augmentation", "world_model")  # sections that made the weights


def judges_of(config: Config, device: torch.device) -> tuple[Detect | None, VideoJudge | None]:
    """What can say what a video shows: the environment's events, and the reward model that the config names."""
    detect, judge = None, None
    if has_ability(config.environment, "events"):
        environment: Any = make_environment(config.environment)
        detect = environment.detect_events
    if path := config.pretrain.reward_model:
        judge = VideoJudge(load_reward_model(config, path, device=device), config.reward.min_steps)
    return detect, judge
