"""Small trainings that any number of processes can share, for the laws of sharing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from learners.supervised.cloning import clone_policy
from learners.supervised.frame_training import ProgressTrainer
from learners.supervised.loop import WHOLE, WorkerShare, train_network
from learners.supervised.reward_training import train_reward_model
from learners.supervised.training_state import NO_CHECKPOINTS, TrainingCheckpoints
from learners.supervised.world_model_training import WorldModelTrainer, train_world_model
from tests.support.openvla import small_policy
from tests.support.small_world import small_world_model
from wmpo_ray.config.run import CloningConfig, WorldModelTrainingConfig
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.windows import WindowSampler
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.environments.pocket.play import collect_play
from wmpo_ray.environments.pocket.pocket_kind import LAYOUT
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.reward_models.frame import FrameRewardModel
from wmpo_ray.reward_models.frame_settings import FrameRewardConfig
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import VideoMAERewardConfig
from wmpo_ray.rollout.evaluation import rollout_expert

STEPS = 3
BATCH = 7  # no two equal shares
Outcome = tuple[dict[str, Tensor], dict[str, float]]


def expert_demos(num: int) -> Episodes:
    return rollout_expert(PocketEnvironment(8), np.arange(num), 0.1, (0, "demos"))


def tiny_policy() -> TinyPolicy:
    torch.manual_seed(0)
    vocabulary = vocabulary_of(PocketEnvironment.instructions)
    return TinyPolicy(TinyPolicyHFConfig(width=16, num_layers=1, num_heads=2, patch_size=8, vocabulary=vocabulary))


def reward_training(**settings: Any) -> tuple[VideoMAERewardModel, VideoMAERewardConfig, Episodes]:
    """A fresh reward model, its settings, and rollouts of which some fail."""
    episodes = rollout_expert(PocketEnvironment(24), np.arange(12), 3.0, (0, "demos"))
    network = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    config = VideoMAERewardConfig.model_validate({"network": network, "swapped_share": 0.4, **settings})
    return VideoMAERewardModel.create(config, 16, sorted(set(episodes.instructions)), seed=0), config, episodes


def clone(
    policy: TinyPolicy | OpenVLAOFTPolicy,
    demos: Episodes,
    share: WorkerShare,
    micro_batch_size: int,
    learning_rate: float,
) -> Outcome:
    config = CloningConfig(
        steps=STEPS, batch_size=BATCH, micro_batch_size=micro_batch_size, learning_rate=learning_rate
    )
    metrics = clone_policy(policy, demos, config, 5, share=share)
    return policy.state_dict(), metrics


def clone_tiny(share: WorkerShare = WHOLE, micro_batch_size: int = 0) -> Outcome:
    return clone(tiny_policy(), expert_demos(6), share, micro_batch_size, 3e-3)


def clone_openvla(share: WorkerShare = WHOLE, micro_batch_size: int = 0) -> Outcome:
    return clone(small_policy(compute_dtype="float32"), expert_demos(4), share, micro_batch_size, 1e-3)


def train_rewards(share: WorkerShare = WHOLE, micro_batch_size: int = 0) -> Outcome:
    model, config, episodes = reward_training(steps=STEPS, batch_size=2 * BATCH, micro_batch_size=micro_batch_size)
    metrics = train_reward_model(model, config, episodes, 5, share=share)
    return model.network.state_dict(), metrics


def train_frames(share: WorkerShare = WHOLE, micro_batch_size: int = 0) -> Outcome:
    _, _, episodes = reward_training()
    settings = {"steps": STEPS, "batch_size": 2 * BATCH, "micro_batch_size": micro_batch_size, "progress_weight": 0.5}
    network = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    config = FrameRewardConfig.model_validate({"network": network, "swapped_share": 0.4, **settings})
    model = FrameRewardModel.create(config, 16, sorted(set(episodes.instructions)), seed=0)
    trainer = ProgressTrainer(model, config, episodes, 5, share, LAYOUT)
    metrics = train_network(trainer, lambda step, metrics: None, NO_CHECKPOINTS)
    return model.network.state_dict(), metrics


def train_world(
    share: WorkerShare = WHOLE, micro_batch_size: int = 0, checkpoints: TrainingCheckpoints = NO_CHECKPOINTS
) -> Outcome:
    play = collect_play(12, 12, seed=0)
    sources = [
        WindowSampler(play.frames[part], play.actions[part], np.full(6, 12), context_frames=2, chunk_length=4)
        for part in (slice(6), slice(6, None))
    ]
    config = WorldModelTrainingConfig(
        steps=STEPS,
        batch_size=BATCH,
        micro_batch_size=micro_batch_size,
        learning_rate=3e-3,
        warmup_steps=2,
        ema_decay=0.9,
        self_context_share=0.6,
    )
    trainer = WorldModelTrainer(small_world_model(), config, seed=5, share=share, augmentation=LAYOUT)
    metrics = train_world_model(trainer, sources, [0.7, 0.3], checkpoints=checkpoints)
    return dict(trainer.network.state_dict()), metrics


TRAININGS = {
    "tiny": clone_tiny,
    "openvla": clone_openvla,
    "reward": train_rewards,
    "frame": train_frames,
    "world": train_world,
}
