"""Small trainings with progress and checkpoints, for the laws of resuming; some of their steps are skipped."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from learners.supervised.cloning import clone_policy
from learners.supervised.loop import Progress
from learners.supervised.reward_training import train_reward_model
from learners.supervised.training_state import TrainingCheckpoints
from learners.supervised.world_model_training import WorldModelTrainer, train_world_model
from tests.support.small_world import small_world_model
from tests.support.trainings import expert_demos, reward_training, tiny_policy
from wmpo_ray.config.run import CloningConfig, WorldModelTrainingConfig
from wmpo_ray.data.windows import WindowSampler
from wmpo_ray.environments.pocket.play import collect_play

STEPS = 8


class Outcome(NamedTuple):
    weights: dict[str, Tensor]
    metrics: dict[str, float]


def clone(progress: Progress, checkpoints: TrainingCheckpoints) -> Outcome:
    policy = tiny_policy()
    # Some batches have a loss that is not finite; which ones follows from the batch alone.
    policy.register_forward_hook(lambda _, inputs, logits: logits / 0 if int(inputs[0].sum()) % 3 == 0 else logits)
    config = CloningConfig(steps=STEPS, batch_size=8, learning_rate=3e-3)
    metrics = clone_policy(policy, expert_demos(6), config, 5, progress, checkpoints)
    return Outcome(policy.state_dict(), metrics)


def train_rewards(progress: Progress, checkpoints: TrainingCheckpoints) -> Outcome:
    model, config, episodes = reward_training(steps=STEPS, batch_size=8)
    metrics = train_reward_model(model, config, episodes, 5, progress, checkpoints)
    return Outcome(model.network.state_dict(), metrics)


def train_world(progress: Progress, checkpoints: TrainingCheckpoints) -> Outcome:
    play = collect_play(12, 12, seed=0)
    sampler = WindowSampler(play.frames, play.actions, np.full(12, 12), context_frames=2, chunk_length=4)
    config = WorldModelTrainingConfig(steps=STEPS, batch_size=4, learning_rate=3e-3, warmup_steps=2, ema_decay=0.9)
    trainer = WorldModelTrainer(small_world_model(), config, seed=5)
    weight = trainer.network.x_embedder.proj.weight
    weight.register_hook(lambda gradient: gradient / 0 if trainer.num_steps in (1, 4) else gradient)
    metrics = train_world_model(trainer, [sampler], [1.0], progress, checkpoints)
    return Outcome(dict(trainer.network.state_dict()), metrics)


TRAININGS = {"policy": clone, "reward model": train_rewards, "world model": train_world}
