"""The supervised trainings as whole pieces of work: from configuration and data to saved weights and figures.

Each is called once, in the process of the run, or once on every worker with a share of every batch. Only the one with
rank 0 saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from learners.supervised.alignment import WorldModelAligner
from learners.supervised.cloning import clone_policy
from learners.supervised.loop import Progress, WorkerShare, go_on
from learners.supervised.reward_training import train_reward_model
from learners.supervised.training_state import TrainingCheckpoints
from wmpo_ray.config.run import Config
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.store import load_episodes
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.registry import load_policy, pretrained_reward_model
from wmpo_ray.reward_models.videomae import VideoMAERewardModel


@dataclass(frozen=True)
class CloningJob:
    """The base policy, from `policy.pretrained` or from nothing."""

    config: Config
    demos: Episodes
    out: Path

    @property
    def num_steps(self) -> int:
        return self.config.policy.cloning.steps

    def __call__(
        self, share: WorkerShare, device: torch.device, progress: Progress, checkpoints: TrainingCheckpoints
    ) -> dict[str, Any]:
        config = self.config
        policy = begin_policy(config, self.demos, device)
        figures = clone_policy(policy, self.demos, config.policy.cloning, config.seed, progress, checkpoints, share)
        if share.rank == 0:
            with atomic_directory(self.out) as folder:
                policy.save_pretrained(folder)
        return figures


def begin_policy(config: Config, demos: Episodes, device: torch.device) -> Policy:
    """What cloning begins with."""
    if config.policy.pretrained:
        return load_policy(config, config.policy.pretrained, training=True, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "policy"))
        policy = TinyPolicy(
            TinyPolicyHFConfig(
                **config.policy.network.model_dump(),
                frame_size=demos.frames.shape[2],
                chunk_length=config.rollout.chunk_length,
                action_dim=demos.actions.shape[-1],
                vocabulary=vocabulary_of(demos.instructions),
            )
        )
    return policy.to(device)


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

    def __call__(
        self, share: WorkerShare, device: torch.device, progress: Progress, checkpoints: TrainingCheckpoints
    ) -> dict[str, Any]:
        aligner = WorldModelAligner(self.config, self.name, self.pretrained, share=share, device=device)
        aligner.trainer.restore(checkpoints)
        held_out = load_episodes(self.collected).rows(slice(-self.num_held_out, None)) if share.rank == 0 else None
        aligner.use(self.rollouts, self.demos, held_out)
        go_on(aligner.trainer, progress, checkpoints)
        return aligner.finish(str(self.out)) if share.rank == 0 else {}


@dataclass(frozen=True)
class RewardJob:
    """The reward model, from `reward.pretrained` or from nothing; its threshold is not chosen yet."""

    config: Config
    episodes: Episodes
    instructions: tuple[str, ...]  # that a fresh one is to tell apart
    out: Path

    @property
    def num_steps(self) -> int:
        return self.config.reward.steps

    def __call__(
        self, share: WorkerShare, device: torch.device, progress: Progress, checkpoints: TrainingCheckpoints
    ) -> dict[str, Any]:
        config = self.config
        if config.reward.pretrained:
            model: Any = pretrained_reward_model(config)
        else:
            frame_size = self.episodes.frames.shape[2]
            model = VideoMAERewardModel.create(config.reward, frame_size, self.instructions, config.seed)
        model.network.to(device)
        figures = train_reward_model(model, config.reward, self.episodes, config.seed, progress, checkpoints, share)
        if share.rank == 0:
            model.save(self.out)
        return figures
