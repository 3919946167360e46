"""Policy behaviour alignment: the pretrained world model fine-tuned on the policy's own rollouts (paper section 3.1)."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learners.supervised.loop import WHOLE, WorkerShare
from learners.supervised.training_state import TrainingCheckpoints
from learners.supervised.world_model_training import WorldModelTrainer
from wmpo_ray.config.run import Config
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.runtime_settings import configure_process, process_device
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.windows import WindowSampler
from wmpo_ray.rollout.fidelity import replay_error
from wmpo_ray.world_models.loading import begin_world_model, place_world_model

STEPS_PER_CALL = 10  # between two reports of progress
BEFORE = "before"  # among the numbers of the trainer: the error before the first step


class WorldModelAligner:
    """Aligns one world model, a few steps a call, so that whoever placed it sees its progress.

    `name` keys the random numbers: two models aligned on the same data see other batches. Its training is saved in
    `checkpoint_dir`, "": nowhere.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        pretrained: str,
        checkpoint_dir: str = "",
        share: WorkerShare = WHOLE,
        device: torch.device | None = None,
    ):
        configure_process(config.cluster.threads_per_process)
        self.config, self.seed = config, seed_for(config.seed, "align", name)
        fresh = begin_world_model(config, pretrained, self.seed)
        self.world_model = place_world_model(fresh, config, device or process_device(config.cluster.device))
        self.trainer = WorldModelTrainer(self.world_model, config.world_model.alignment, self.seed, share=share)
        self._is_fed = False
        self._held_out: Episodes | None = None
        self._messages: list[str] = []
        self.checkpoints = TrainingCheckpoints(
            Path(checkpoint_dir) if checkpoint_dir else None,
            config.checkpoint.every_training_steps,
            config.checkpoint.keep,
            self._messages.append,
        )

    def resume(self) -> tuple[int, list[str]]:
        """Take up the newest checkpoint; returns steps done, and what there is to tell about the checkpoints."""
        self.trainer.restore(self.checkpoints)
        return self.trainer.num_steps, self._messages

    def use(self, rollouts: Episodes, expert: Episodes, held_out: Episodes | None) -> None:
        """Train on the first two. The error on the third is measured now, unless a checkpoint told it, and at the end."""
        share = self.config.world_model.alignment.demo_share
        self.trainer.use([self._sampler(rollouts), self._sampler(expert)], [1 - share, share])
        self._held_out = held_out
        if held_out is not None and BEFORE not in self.trainer.numbers:
            self.trainer.numbers[BEFORE] = self._error(held_out)
        self._is_fed = True

    def advance(self, data: tuple[Episodes, Episodes, Episodes]) -> tuple[int, dict[str, float]]:
        """Train a few steps on (rollouts, demonstrations, held-out rollouts); returns steps done and the loss.

        Needed at least once before `finish`, also where no step is left. Raises `UserError` on a full disk.
        """
        if not self._is_fed:
            self.use(*data)
        shown: dict[str, float] = {}
        for batch in islice(self.trainer.batches(), STEPS_PER_CALL):
            shown = {"loss": self.trainer.train_on(batch)["loss"]}
            self.trainer.save(self.checkpoints)
        return self.trainer.num_steps, shown

    def finish(self, path: str) -> dict[str, Any]:
        """Save the averaged weights and compare the error on held-out rollouts with that before alignment."""
        assert self._held_out is not None, "the data comes with `use` or `advance`"
        self.trainer.average.swap()
        with atomic_directory(Path(path)) as folder:
            self.world_model.save(folder)
        before, after = self.trainer.numbers[BEFORE], self._error(self._held_out)
        return {
            "psnr_per_frame_db": {"before": before, "after": after},
            "psnr_db_before": sum(before) / len(before),
            "psnr_db_after": sum(after) / len(after),
            "skipped_steps": self.trainer.num_skipped,
        }

    def _sampler(self, episodes: Episodes) -> WindowSampler:
        world, weight = self.world_model, self.config.world_model.alignment.contact_weight
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
