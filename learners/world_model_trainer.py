"""Training of a diffusion world model: from nothing on play, or alignment on the policy's own rollouts.

The paper's policy behaviour alignment is the second: failures included, so that the model learns what happens when
the policy errs. Half of the batches show the model its own previous chunk as context, as it will be in imagination.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from learners.training_state import NO_CHECKPOINTS, Numbers, Parts, TrainingCheckpoints
from wmpo_ray.config import WorldModelTrainingConfig
from wmpo_ray.data.windows import WindowBatch, WindowSampler
from wmpo_ray.seeding import generator_for
from wmpo_ray.world_models.diffusion import DiffusionWorldModel

Progress = Callable[[int, dict[str, float]], None]


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


def learning_rate_factor(step: int, config: WorldModelTrainingConfig) -> float:
    """Warm-up, a plateau, then a linear fall over the last `decay_share` of the steps."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    left = 1.0 - step / config.steps
    fall = max(config.final_share, left / config.decay_share) if config.decay_share else 1.0
    return warm * min(1.0, fall)


class WorldModelTrainer:
    """Optimizer, average and random numbers of one training; `step` is one optimizer step."""

    def __init__(
        self,
        world_model: DiffusionWorldModel,
        config: WorldModelTrainingConfig,
        seed: int,
        compile_network: bool = False,
    ):
        self.world_model = world_model
        self.config = config
        self.generator = generator_for(seed, "world-model")
        self.network = world_model.denoiser.network
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.average = ExponentialAverage(parameters, config.ema_decay)
        self.loss = torch.compile(world_model.denoiser.loss) if compile_network else world_model.denoiser.loss
        self.num_steps = 0
        self.num_skipped = 0

    def step(self, samplers: Sequence[WindowSampler], shares: Sequence[float]) -> dict[str, float]:
        """One step on a batch with the given share of each source."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(self.num_steps, config)
        batch = self._draw(samplers, shares)
        clip, actions = self._latents(batch)
        t = self.world_model.denoiser.draw_times(len(clip), self.generator)
        noise = torch.randn(clip.shape, generator=self.generator)
        loss = self.loss(clip, self.world_model.context_frames, actions, t, noise).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.average.update()
        else:
            self.num_skipped += 1
        self.num_steps += 1
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}

    @property
    def _parts(self) -> Parts:
        return {
            "network": self.network,
            "optimizer": self.optimizer,
            "average": self.average.average,
            "generator": self.generator,
        }

    def save(self, checkpoints: TrainingCheckpoints, numbers: Numbers) -> None:
        """Save if a checkpoint is due, with further numbers of whoever trains. Raises `UserError` on a full disk."""
        counts = {"num_skipped": self.num_skipped, "num_averaged": self.average.num_updates}
        checkpoints.save(self.num_steps, self._parts, {**counts, **numbers})

    def restore(self, checkpoints: TrainingCheckpoints) -> Numbers | None:
        """Go back to the newest whole checkpoint; returns the numbers saved with it, None where there is none."""
        restored = checkpoints.restore(self._parts)
        if restored is None:
            return None
        self.num_steps, numbers = restored
        self.num_skipped, self.average.num_updates = numbers.pop("num_skipped"), numbers.pop("num_averaged")
        return numbers

    def _draw(self, samplers: Sequence[WindowSampler], shares: Sequence[float]) -> WindowBatch:
        sizes = [round(self.config.batch_size * share) for share in shares[:-1]]
        sizes.append(self.config.batch_size - sum(sizes))
        parts = [s.draw(n, self.generator) for s, n in zip(samplers, sizes, strict=True) if n > 0]
        return WindowBatch(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _latents(self, batch: WindowBatch) -> tuple[Tensor, Tensor]:
        """Clean clip latents [B, C, c+K, h, w] and actions, flipped for half of the samples where configured."""
        world, c = self.world_model, self.world_model.context_frames
        clip = world.codec.encode(batch.clip)
        ready = self.num_steps >= self.config.self_context_start * self.config.steps
        if torch.rand((), generator=self.generator) < self.config.self_context_share and ready:
            own = self._own_context(batch)
            clip = torch.cat(
                [torch.where(batch.has_previous.view(-1, 1, 1, 1, 1), own, clip[:, :, :c]), clip[:, :, c:]], 2
            )
        actions = batch.actions
        if self.config.vertical_flip:
            flip = torch.rand(len(clip), generator=self.generator) < 0.5
            clip = torch.where(flip.view(-1, 1, 1, 1, 1), clip.flip(3), clip)
            mirrored = actions * torch.tensor([1.0, -1.0] + [1.0] * (actions.shape[-1] - 2))
            actions = torch.where(flip.view(-1, 1, 1), mirrored, actions)
        return clip, actions

    @torch.no_grad()
    def _own_context(self, batch: WindowBatch) -> Tensor:
        """The last c latents of the chunk before, as the model itself imagines them."""
        world, c = self.world_model, self.world_model.context_frames
        previous = world.codec.encode(batch.previous_clip)
        noise = torch.randn(previous.shape, generator=self.generator)
        conditioning = world.denoiser.condition(previous[:, :, :c], noise[:, :, :c])
        latents = world.sampler.sample(world.denoiser, noise[:, :, c:], batch.previous_actions, conditioning)
        return torch.cat([previous[:, :, :c], latents], 2)[:, :, -c:]


def train_world_model(
    trainer: WorldModelTrainer,
    samplers: Sequence[WindowSampler],
    shares: Sequence[float],
    progress: Progress = lambda step, metrics: None,
    checkpoints: TrainingCheckpoints = NO_CHECKPOINTS,
) -> dict[str, float]:
    """Run all configured steps, from the newest checkpoint if there is one, and leave the averaged weights in the model.

    Returns the last figures.
    """
    started = time.monotonic()
    numbers = trainer.restore(checkpoints) or {}
    while trainer.num_steps < trainer.config.steps:
        loss = trainer.step(samplers, shares)["loss"]
        numbers["loss"] = 0.98 * numbers["loss"] + 0.02 * loss if numbers else loss
        progress(trainer.num_steps, {"loss": numbers["loss"]})
        trainer.save(checkpoints, numbers)
    trainer.average.swap()
    loss = numbers.get("loss", 0.0)
    return {"loss": loss, "seconds": time.monotonic() - started, "skipped_steps": trainer.num_skipped}
