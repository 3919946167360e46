"""Policy behaviour alignment: the pretrained world model fine-tuned on the policy's own rollouts (paper section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from learners.supervised.loop import WHOLE, WorkerShare
from learners.supervised.world_model_training import WorldModelTrainer
from wmpo_ray.config.run import Config
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.windows import WindowSampler
from wmpo_ray.environments.augmentation import augmentation_of
from wmpo_ray.rollout.fidelity import replay_error
from wmpo_ray.world_models.pretrained_world import begin_world_model, place_world_model

BEFORE = "before"  # key in the trainer's numbers: the error before the first step


class AlignmentTrainer(WorldModelTrainer):
    """Trains one world model on rollouts of the policy and on expert demonstrations.

    `name` keys the random numbers: two models aligned on the same data see other batches.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        pretrained: str,
        rollouts: Episodes,
        expert: Episodes,
        device: torch.device,
        share: WorkerShare = WHOLE,
    ):
        alignment = config.world_model.alignment
        self.seed = seed_for(config.seed, "align", name)
        world = place_world_model(begin_world_model(config, pretrained, self.seed), config, device)
        super().__init__(world, alignment, self.seed, share=share, augmentation=augmentation_of(config))
        samplers = [self._sampler(rollouts), self._sampler(expert)]
        self.use(samplers, [1 - alignment.demo_share, alignment.demo_share])

    def measure_before(self, held_out: Episodes) -> None:
        """Measure the error before the first step, unless a checkpoint contains it."""
        if BEFORE not in self.numbers:
            self.numbers[BEFORE] = self._error(held_out)

    def finish(self, path: Path, held_out: Episodes) -> dict[str, Any]:
        """Save the averaged weights; compare the error on held-out rollouts before and after alignment."""
        self.average.swap()
        with atomic_directory(path) as folder:
            self.world_model.save(folder)
        before, after = self.numbers[BEFORE], self._error(held_out)
        return {
            "psnr_per_frame_db": {"before": before, "after": after},
            "psnr_db_before": sum(before) / len(before),
            "psnr_db_after": sum(after) / len(after),
            "skipped_steps": self.num_skipped,
        }

    def _sampler(self, episodes: Episodes) -> WindowSampler:
        world, weight = self.world_model, self.config.contact_weight
        weights = 1.0 + (weight - 1.0) * grip_changes(episodes.actions, world.chunk_length)
        return WindowSampler(
            episodes.frames, episodes.actions, episodes.lengths, world.context_frames, world.chunk_length, weights
        )

    def _error(self, held_out: Episodes) -> list[float]:
        return replay_error(self.world_model, held_out, self.seed).tolist()


def grip_changes(actions: np.ndarray, chunk_length: int) -> np.ndarray:
    """Windows [M, T] bool in which the gripper (the last action dimension) opens or closes: they decide the outcome."""
    closed = actions[..., -1] > 0
    changes = np.pad(closed[:, 1:] != closed[:, :-1], ((0, 0), (1, chunk_length - 1)))
    windows = np.lib.stride_tricks.sliding_window_view(changes, chunk_length, axis=1)
    return np.asarray(windows.any(-1))
