"""Pretraining of a world model on play or recorded episodes, with the choice of the best checkpoint on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from learners.supervised.alignment import grip_changes
from learners.supervised.loop import WHOLE, WorkerShare
from learners.supervised.training_state import Parts
from learners.supervised.world_model_training import WindowDraw, WorldModelTrainer
from wmpo_ray.config.models import WorldModelTrainingConfig
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.seeding import generator_for, seed_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.windows import WindowSampler
from wmpo_ray.environments.augmentation import augmentation_of
from wmpo_ray.rollout.held_out_judge import HeldOutJudge, mean_agreement
from wmpo_ray.world_models.pretrained_world import begin_world_model, place_world_model

NUM_LOSS_WINDOWS = 256  # of the held-out episodes, always the same
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
MEASURED = "measured_"  # begins the numbers of the checkpoint that is kept
SCORED = "scored_at_"  # begins the score at each step that was measured
Rows = np.ndarray  # [n] int64


class PretrainSource(NamedTuple):
    """Episodes to train on.

    contact: steps [M, T] bool of them that decide what comes of them; None: where the gripper opens or closes.
    """

    episodes: Episodes
    contact: np.ndarray | None
    share: float  # of every batch, in proportion to those of other sources


def split_rows(num_episodes: int, num_held_out: int, seed: int) -> tuple[Rows, Rows]:
    """Episodes to train on, and those that are held out, drawn at random. Raises UserError if none would be left."""
    if num_held_out >= num_episodes:
        raise UserError(
            f"pretrain.num_held_out = {num_held_out}: there are {num_episodes} episodes, and none would be left to train "
            "on; lower it, or take more"
        )
    order = np.random.default_rng([seed, num_episodes]).permutation(num_episodes)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def decisive_windows(contact: np.ndarray, chunk_length: int) -> np.ndarray:
    """Windows [M, T] bool of which any step has contact [M, T] bool."""
    padded = np.pad(contact, ((0, 0), (0, chunk_length - 1)))
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, chunk_length, axis=1).any(-1))


class PretrainTrainer(WorldModelTrainer):
    """Trains one world model, measures it every `pretrain.measure_every` steps, and ends with the best weights.

    The best weights so far are part of the checkpoints, so a training that is taken up again chooses the same ones.
    """

    def __init__(
        self,
        config: Config,
        sources: Sequence[PretrainSource],
        judge: HeldOutJudge,
        device: torch.device,
        share: WorkerShare = WHOLE,
    ):
        settings, self.seed, self.judge = config.pretrain, seed_for(config.seed, "pretrain"), judge
        self.settings = settings
        # Alignment changes what a model knows of noise and actions; pretraining comes before.
        section: Any = config.world_model.model_copy(update={"alignment": WorldModelTrainingConfig()})
        plain = config.model_copy(update={"world_model": section})
        self.begun_with: str = section.pretrained
        world = place_world_model(begin_world_model(plain, self.begun_with, self.seed), plain, device)
        super().__init__(
            world, settings, self.seed, share=share, augmentation=augmentation_of(config), section="pretrain"
        )
        total = sum(source.share for source in sources)
        self.use([self._weighted(source) for source in sources], [source.share / total for source in sources])
        self._held_out = self._windows(judge.episodes)
        self._best = [parameter.detach().clone() for parameter in self.average.parameters]

    @property
    def parts(self) -> Parts:
        return {**super().parts, "best": self._best}

    def train_on(self, batch: WindowDraw) -> dict[str, float]:
        metrics = super().train_on(batch)
        if self.num_steps % self.settings.measure_every == 0 or self.num_steps == self.settings.steps:
            self._measure()
        return metrics

    def measure_before(self) -> None:
        """Measure a model that was pretrained before, so that nothing worse takes its place; a checkpoint has it."""
        if self.begun_with and not self.num_steps and not self._scores:
            self._measure()

    def finish(self, path: Path) -> dict[str, Any]:
        """Save the best weights in the folder `path`, which is there; returns what was measured of them."""
        for parameter, best in zip(self.average.parameters, self._best, strict=True):
            parameter.data.copy_(best)
        self.world_model.save(path, DTYPES[self.settings.weights])
        measured = {
            key.removeprefix(MEASURED): value for key, value in self.numbers.items() if key.startswith(MEASURED)
        }
        return {**measured, "scores": self._scores, "skipped_steps": self.num_skipped}

    @property
    def _scores(self) -> dict[str, float]:
        """By the step at which it was measured."""
        return {key.removeprefix(SCORED): value for key, value in self.numbers.items() if key.startswith(SCORED)}

    def _weighted(self, source: PretrainSource) -> WindowSampler:
        """Windows that decide come up more often than others."""
        chunk = self.world_model.chunk_length
        if source.contact is not None:
            decisive = decisive_windows(source.contact, chunk)
        else:
            decisive = grip_changes(source.episodes.actions, chunk)
        return self._windows(source.episodes, 1.0 + (self.settings.contact_weight - 1.0) * decisive)

    def _windows(self, episodes: Episodes, weights: np.ndarray | None = None) -> WindowSampler:
        world = self.world_model
        return WindowSampler(
            episodes.frames, episodes.actions, episodes.lengths, world.context_frames, world.chunk_length, weights
        )

    def _measure(self) -> None:
        """Measure the averaged weights, and keep them if they are the best so far.

        Later ones win ties: the learning rate is still falling.
        """
        self.average.swap()
        metrics = {**self.judge.metrics(self.world_model), "held_out_loss": self._held_out_loss()}
        score = self._score(metrics)
        self.numbers[f"{SCORED}{self.num_steps}"] = score
        if MEASURED + "score" not in self.numbers or score >= self.numbers[MEASURED + "score"]:
            for best, parameter in zip(self._best, self.average.parameters, strict=True):
                best.copy_(parameter.detach())
            kept = {**metrics, "step": self.num_steps, "score": score}
            self.numbers |= {MEASURED + name: value for name, value in kept.items()}
        self.average.swap()

    def _score(self, metrics: dict[str, float]) -> float:
        agreement = mean_agreement(metrics)
        if agreement is None or self.settings.choose_by == "loss":
            return -metrics["held_out_loss"]
        return agreement

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """The training loss on windows of the held-out episodes, with the same noise every time."""
        world, generator = self.world_model, generator_for(self.seed, "held-out")
        index, size, losses = self._held_out.choose(NUM_LOSS_WINDOWS, generator), self.settings.batch_size, []
        for first in range(0, NUM_LOSS_WINDOWS, size):
            batch = self._held_out.windows(index[first : first + size])
            clip = world.codec.encode(batch.clip.to(self.device))
            t = world.denoiser.draw_times(len(clip), generator).to(self.device)
            noise = torch.randn(clip.shape, generator=generator).to(self.device)
            loss = world.denoiser.loss(clip, world.context_frames, batch.actions.to(self.device), t, noise)
            losses.append(loss.float().cpu())
        return float(torch.cat(losses).mean())
