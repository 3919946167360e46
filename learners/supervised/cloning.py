"""Behaviour cloning: the base policy from expert demonstrations (the "SFT" stage)."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from learners.supervised.loop import WHOLE, Progress, SupervisedTraining, WorkerShare, train_network, trained_parameters
from learners.supervised.training_state import NO_CHECKPOINTS, Parts, TrainingCheckpoints
from wmpo_ray.config.run import CloningConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.seeding import generator_for, seed_for
from wmpo_ray.core.types import Episodes


class PolicyCloner(SupervisedTraining):
    """The policy's cloning loss of the expert's next K actions at every step of every demonstration.

    After the end of a demonstration its last action repeats. A batch is the numbers of decisions [B], those at which an
    operator took over drawn `config.correction_weight` times as often as others. A step with a loss that is not finite is
    skipped and counted. Noise that the loss draws is keyed by the step and the place in its batch, so that it depends
    neither on the ranks nor on where a training was taken up again.
    """

    def __init__(self, policy: Policy, demos: Episodes, config: CloningConfig, seed: int, share: WorkerShare = WHOLE):
        network = cast(nn.Module, policy)
        self.trained = trained_parameters(network)
        optimizer = torch.optim.AdamW(
            self.trained.values(), config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        generator = generator_for(seed, "cloning")

        def loss(frames: np.ndarray, texts: list[str], actions: Tensor, seeds: list[int]) -> Tensor:
            return policy.cloning_loss(Observation.of(frames, texts), actions, seeds)

        super().__init__(network, loss, optimizer, generator, config, "policy.cloning", share)
        self.config, self.chunk_length, self.seed = config, policy.chunk_length, seed
        self.rows, self.steps = _decisions(demos)
        self.actions = torch.from_numpy(_padded_actions(demos, policy.chunk_length))
        self.frames, self.instructions = demos.frames, demos.instructions
        self.weights = _weights(demos, self.rows, self.steps, config.correction_weight)
        self.numbers["skipped_steps"] = 0

    @property
    def parts(self) -> Parts:
        return {"policy": self.trained, "optimizer": self.optimizer, "generator": self.generator}

    def learning_rate_factor(self) -> float:
        return _schedule(self.num_steps, self.config.steps)

    def draw(self) -> Tensor:
        if self.weights is not None:
            return torch.multinomial(self.weights, self.config.batch_size, replacement=True, generator=self.generator)
        return torch.randint(len(self.rows), (self.config.batch_size,), generator=self.generator)

    def inputs(self, batch: Tensor) -> tuple[tuple, int]:
        """Frames [n, H, W, 3], instructions, actions [n, K, D] and seeds."""
        own = self.share.of(len(batch))
        chosen = batch[own]
        row, t = self.rows[chosen], self.steps[chosen]
        actions = self.actions[row[:, None], t[:, None] + torch.arange(self.chunk_length)]
        texts = [self.instructions[i] for i in row.tolist()]
        places = range(len(batch))[own]
        seeds = [seed_for(self.seed, "cloning-noise", self.num_steps, place) for place in places]
        return (self.frames[row.numpy(), t.numpy()], texts, actions, seeds), len(batch)

    def update(self, loss: float) -> dict[str, float]:
        if math.isfinite(loss):
            torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.max_grad_norm)
            self.optimizer.step()
            self.smooth(loss)
        else:
            self.numbers["skipped_steps"] += 1
        return {"loss": self.numbers["loss"]}


def clone_policy(
    policy: Policy,
    demos: Episodes,
    config: CloningConfig,
    seed: int,
    progress: Progress = lambda step, metrics: None,
    checkpoints: TrainingCheckpoints = NO_CHECKPOINTS,
    share: WorkerShare = WHOLE,
) -> dict[str, float]:
    """Train `policy` in place, resuming from the newest checkpoint if any; returns the last smoothed loss.

    What is trained are the parameters that want a gradient. Steps with a loss that is not finite are skipped and
    counted.
    """
    return train_network(PolicyCloner(policy, demos, config, seed, share), progress, checkpoints)


def _schedule(step: int, total: int, warmup: int = 50) -> float:
    """Linear warm-up, then cosine decay to 1/20."""
    return min(1.0, (step + 1) / warmup) * (0.475 * (1 + math.cos(math.pi * step / total)) + 0.05)


def _decisions(demos: Episodes) -> tuple[Tensor, Tensor]:
    """Row and step of every frame at which an action was taken."""
    before_end = np.arange(demos.actions.shape[1])[None] < demos.lengths[:, None]
    rows, steps = np.nonzero(before_end)
    return torch.from_numpy(rows), torch.from_numpy(steps)


def _weights(demos: Episodes, rows: Tensor, steps: Tensor, weight: float) -> Tensor | None:
    """Of each decision; None where all are alike, which are drawn as they were before there were corrections."""
    if demos.corrections is None or weight == 1:
        return None
    is_correction = torch.from_numpy(demos.corrections)[rows, steps]
    if weight == 0 and bool(is_correction.all()):
        raise UserError(
            "policy.cloning.correction_weight = 0: every step is an operator's, and none would be left; raise it"
        )
    return torch.where(is_correction, float(weight), 1.0)


def _padded_actions(demos: Episodes, extra: int) -> np.ndarray:
    """Actions [M, T+extra, D]; the last real action is repeated after the end."""
    horizon = demos.actions.shape[1]
    last = np.minimum(np.arange(horizon + extra)[None], demos.lengths[:, None] - 1)
    return np.take_along_axis(demos.actions, last[..., None], 1)
