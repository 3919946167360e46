"""Policy behaviour alignment: the pretrained world model fine-tuned on the policy's own rollouts (paper section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from learners.training_state import TrainingCheckpoints
from learners.world_model_trainer import WorldModelTrainer
from wmpo_ray.config import Config
from wmpo_ray.data.windows import WindowSampler
from wmpo_ray.fidelity import psnr_per_frame, replay, starts_of
from wmpo_ray.runtime_settings import configure_process
from wmpo_ray.seeding import seed_for
from wmpo_ray.types import Episodes
from wmpo_ray.world_models.diffusion import DiffusionWorldModel

STEPS_PER_CALL = 10  # between two reports of progress


class WorldModelAligner:
    """Aligns one world model, a few steps a call, so that whoever placed it sees its progress.

    `name` keys the random numbers: two models aligned on the same data see other batches. Its training is saved in
    `checkpoint_dir`, "": nowhere.
    """

    def __init__(self, config: Config, name: str, pretrained: str, checkpoint_dir: str = ""):
        configure_process(config.cluster.threads_per_process)
        self.config, self.seed = config, seed_for(config.seed, "align", name)
        chunk, action_dim = config.rollout.chunk_length, 3
        if pretrained:
            self.world_model = DiffusionWorldModel.load(pretrained)
        else:
            self.world_model = DiffusionWorldModel.create(config.world_model, action_dim, chunk, self.seed)
        if self.world_model.chunk_length != chunk:
            raise ValueError(
                f"world model {pretrained!r} imagines chunks of {self.world_model.chunk_length} frames; "
                f"set rollout.chunk_length={self.world_model.chunk_length} or world_model.pretrained"
            )
        self.trainer = WorldModelTrainer(self.world_model, config.world_model.alignment, self.seed)
        self.samplers: list[WindowSampler] | None = None
        self.before: list[float] | None = None  # error before the first step
        self._messages: list[str] = []
        self.checkpoints = TrainingCheckpoints(
            Path(checkpoint_dir) if checkpoint_dir else None,
            config.checkpoint.every_training_steps,
            config.checkpoint.keep,
            self._messages.append,
        )

    def resume(self) -> tuple[int, list[str]]:
        """Take up the newest checkpoint; returns steps done, and what there is to tell about the checkpoints."""
        numbers = self.trainer.restore(self.checkpoints)
        if numbers is not None:
            self.before = numbers["before"]
        return self.trainer.num_steps, self._messages

    def advance(self, data: tuple[Episodes, Episodes, Episodes]) -> tuple[int, dict[str, float]]:
        """Train a few steps on (rollouts, demonstrations, held-out rollouts); returns steps done and the loss.

        Needed at least once before `finish`, also where no step is left. Raises `UserError` on a full disk.
        """
        if self.samplers is None:
            rollouts, expert, self.held_out = data
            self.samplers = [self._sampler(rollouts), self._sampler(expert)]
        if self.before is None:
            self.before = self._error()
        share = self.config.world_model.alignment.demo_share
        shown: dict[str, float] = {}
        for _ in range(min(STEPS_PER_CALL, self.trainer.config.steps - self.trainer.num_steps)):
            shown = {"loss": self.trainer.step(self.samplers, [1 - share, share])["loss"]}
            self.trainer.save(self.checkpoints, {"before": self.before})
        return self.trainer.num_steps, shown

    def finish(self, path: str) -> dict[str, Any]:
        """Save the averaged weights and compare the error on held-out rollouts with that before alignment."""
        assert self.before is not None, "the data comes with `advance`"
        self.trainer.average.swap()
        self.world_model.save(path)
        after = self._error()
        return {
            "psnr_per_frame_db": {"before": self.before, "after": after},
            "psnr_db_before": sum(self.before) / len(self.before),
            "psnr_db_after": sum(after) / len(after),
            "skipped_steps": self.trainer.num_skipped,
        }

    def _sampler(self, episodes: Episodes) -> WindowSampler:
        world, weight = self.world_model, self.config.world_model.alignment.contact_weight
        weights = 1.0 + (weight - 1.0) * grip_changes(episodes.actions, world.chunk_length)
        return WindowSampler(
            episodes.frames, episodes.actions, episodes.lengths, world.context_frames, world.chunk_length, weights
        )

    def _error(self) -> list[float]:
        videos = replay(self.world_model, starts_of(self.held_out), self.held_out.actions, self.seed)
        return [float(value) for value in psnr_per_frame(self.held_out.frames, videos, self.held_out.lengths)]


def grip_changes(actions: np.ndarray, chunk_length: int) -> np.ndarray:
    """Windows [M, T] bool in which the gripper (the last action dimension) opens or closes: they decide the outcome."""
    closed = actions[..., -1] > 0
    changes = np.pad(closed[:, 1:] != closed[:, :-1], ((0, 0), (1, chunk_length - 1)))
    windows = np.lib.stride_tricks.sliding_window_view(changes, chunk_length, axis=1)
    return np.asarray(windows.any(-1))
