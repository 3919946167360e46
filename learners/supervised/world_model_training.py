"""Trains a diffusion world model: from scratch on play data, or by alignment on the policy's own rollouts.

The paper's policy behaviour alignment is the second: failures included, so that the model learns what happens when
the policy errs. Half of the batches show the model its own previous chunk as context, as it will be in imagination.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from learners.supervised.changed_scenes import NO_AUGMENTATION, Augmentation
from learners.supervised.loop import WHOLE, Progress, SupervisedTraining, WorkerShare, run_training, trained_parameters
from learners.supervised.training_state import NO_CHECKPOINTS, Parts, TrainingCheckpoints
from wmpo_ray.config.models import VideoTrainingConfig
from wmpo_ray.core.seeding import generator_for
from wmpo_ray.data.windows import WindowBatch, WindowSampler
from wmpo_ray.environments.layout import FrameLayout
from wmpo_ray.world_models.autoencoder import PixelCodec
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.pixel_weights import ColourWeights


class ExponentialAverage:
    """Moving average of the weights; `swap` exchanges it with the weights in training."""

    def __init__(self, parameters: Sequence[Tensor], decay: float):
        self.parameters = list(parameters)
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def learning_rate_factor(step: int, config: VideoTrainingConfig) -> float:
    """Warm-up, a plateau, then a linear fall over the last `decay_share` of the steps."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    left = 1.0 - step / config.steps
    fall = max(config.final_share, left / config.decay_share) if config.decay_share else 1.0
    return warm * min(1.0, fall)


class WindowDraw(NamedTuple):
    """Windows chosen for all ranks, and this rank's windows."""

    num_all: int
    own: WindowBatch


class WorldModelTrainer(SupervisedTraining):
    """Optimizer, averaged weights and random generator of one training; `use` sets its data.

    `augmentation`: the views of its frames, with the mirror, the shifts and the pixel weights to use; `section`: of the configuration.
    A step whose gradient is not finite is skipped and counted.
    """

    smoothing = (0.98, 0.02)

    def __init__(
        self,
        world_model: DiffusionWorldModel,
        config: VideoTrainingConfig,
        seed: int,
        compile_network: bool = False,
        share: WorkerShare = WHOLE,
        augmentation: FrameLayout = NO_AUGMENTATION,
        section: str = "world_model.alignment",
    ):
        self.world_model, self.config, self.augmentation = world_model, config, Augmentation(augmentation)
        denoiser, codec = world_model.denoiser, world_model.codec
        if augmentation.pixel_weights and isinstance(codec, PixelCodec):
            denoiser.pixel_weights = ColourWeights(augmentation.pixel_weights, codec)
        parameters = list(trained_parameters(denoiser.network).values())
        optimizer = torch.optim.AdamW(
            parameters, config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.average = ExponentialAverage(parameters, config.ema_decay)
        self._loss_of_each = torch.compile(denoiser.loss) if compile_network else denoiser.loss
        generator = generator_for(seed, "world-model")
        super().__init__(denoiser.network, self._clip_loss, optimizer, generator, config, section, share)
        self.numbers["num_skipped"] = 0
        self._samplers: Sequence[WindowSampler] = ()
        self._shares: Sequence[float] = ()

    def use(self, samplers: Sequence[WindowSampler], shares: Sequence[float]) -> None:
        """Take a share of every batch from each source."""
        self._samplers, self._shares = samplers, shares

    @property
    def num_skipped(self) -> int:
        return self.numbers["num_skipped"]

    @property
    def parts(self) -> Parts:
        return {
            "network": self.network,
            "optimizer": self.optimizer,
            "average": self.average.average,
            "generator": self.generator,
        }

    def save(self, checkpoints: TrainingCheckpoints) -> None:
        self.numbers["num_averaged"] = self.average.num_updates
        super().save(checkpoints)

    def restore(self, checkpoints: TrainingCheckpoints) -> bool:
        restored = super().restore(checkpoints)
        if restored:
            self.average.num_updates = self.numbers["num_averaged"]
        return restored

    def learning_rate_factor(self) -> float:
        return learning_rate_factor(self.num_steps, self.config)

    def draw(self) -> WindowDraw:
        total = self.config.batch_size
        sizes = [round(total * share) for share in self._shares[:-1]]
        sizes.append(total - sum(sizes))
        own = self.share.of(total)
        parts, start = [], 0
        for sampler, size in zip(self._samplers, sizes, strict=True):
            if size > 0:
                chosen = sampler.choose(size, self.generator)[max(0, own.start - start) : max(0, own.stop - start)]
                start += size
                if len(chosen):
                    parts.append(sampler.windows(chosen))
        return WindowDraw(total, WindowBatch(*(torch.cat(column) for column in zip(*parts, strict=True))))

    def inputs(self, batch: WindowDraw) -> tuple[tuple, int]:
        """Clean clip latents [n, C, c+K, h, w], actions, diffusion times [n] and noise like the latents."""
        own = self.share.of(batch.num_all)
        clip, actions = self._latents(batch)
        t = self.world_model.denoiser.draw_times(batch.num_all, self.generator)[own]
        return (clip, actions, t.to(self.device), self._noise(batch.num_all, clip)), batch.num_all

    def update(self, loss: float) -> dict[str, float]:
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.average.update()
        else:
            self.numbers["num_skipped"] += 1
        return {"loss": self.smooth(loss), "grad_norm": float(norm)}

    def _clip_loss(self, clip: Tensor, actions: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self._loss_of_each(clip, self.world_model.context_frames, actions, t, noise).mean()

    def _noise(self, num_all: int, like: Tensor) -> Tensor:
        """This rank's share of noise for all samples."""
        noise = torch.randn((num_all, *like.shape[1:]), generator=self.generator)
        return noise[self.share.of(num_all)].to(self.device)

    def _latents(self, batch: WindowDraw) -> tuple[Tensor, Tensor]:
        """Clean clip latents [n, C, c+K, h, w] and actions, mirrored and shifted where that is allowed."""
        world, c = self.world_model, self.world_model.context_frames
        clip, actions = world.codec.encode(batch.own.clip.to(self.device)), batch.own.actions.to(self.device)
        ready = self.num_steps >= self.config.self_context_start * self.config.steps
        if torch.rand((), generator=self.generator) < self.config.self_context_share and ready:
            own, has_previous = self._own_context(batch), batch.own.has_previous.to(self.device)
            clip = torch.cat([torch.where(has_previous.view(-1, 1, 1, 1, 1), own, clip[:, :, :c]), clip[:, :, c:]], 2)
        augmentation = self.augmentation.for_latents(batch.own.clip.shape[2] // clip.shape[3])
        moves = augmentation.draw(batch.num_all, self.share, self.generator)
        return augmentation.frames(clip, moves, rows=3), augmentation.actions(actions, moves)

    @torch.no_grad()
    def _own_context(self, batch: WindowDraw) -> Tensor:
        """The last c latents of the previous chunk, as imagined by the model itself."""
        world, c = self.world_model, self.world_model.context_frames
        previous = world.codec.encode(batch.own.previous_clip.to(self.device))
        noise = self._noise(batch.num_all, previous)
        conditioning = world.denoiser.condition(previous[:, :, :c], noise[:, :, :c])
        actions = batch.own.previous_actions.to(self.device)
        latents = world.sampler.sample(world.denoiser, noise[:, :, c:], actions, conditioning)
        return torch.cat([previous[:, :, :c], latents], 2)[:, :, -c:]


def train_world_model(
    trainer: WorldModelTrainer,
    samplers: Sequence[WindowSampler],
    shares: Sequence[float],
    progress: Progress = lambda step, metrics: None,
    checkpoints: TrainingCheckpoints = NO_CHECKPOINTS,
) -> dict[str, float]:
    """Run all configured steps, resuming from the newest checkpoint if any; the model ends with the averaged weights.

    Returns the last metrics.
    """
    started = time.monotonic()
    trainer.use(samplers, shares)
    run_training(trainer, lambda step, metrics: progress(step, {"loss": metrics["loss"]}), checkpoints)
    trainer.average.swap()
    loss, seconds = trainer.numbers["loss"], time.monotonic() - started
    return {"loss": loss, "seconds": seconds, "skipped_steps": trainer.num_skipped}
