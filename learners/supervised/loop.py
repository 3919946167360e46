"""The loop of every supervised training, alone in a process or on several ranks that each take a share of every batch.

All random numbers of a training come from one generator on the CPU. Every rank draws all of them, those of the whole
batch, and computes with its own share. So what a step sees follows from the seed and the number of the step alone: not
from how many ranks there are, and not from where a training was taken up again, as the generator is in its checkpoint.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from learners.divergence import check_skipped_in_a_row
from learners.supervised.training_state import NO_CHECKPOINTS, Numbers, Parts, TrainingCheckpoints
from wmpo_ray.core.errors import ConfigError

Progress = Callable[[int, dict[str, float]], None]


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True)
class WorkerShare:
    """This process's rank among those that train together.

    `prepare` makes of a module one whose gradients are the mean over all ranks, such as `DistributedDataParallel`. With
    more than one rank the default process group of `torch.distributed` is used.
    """

    rank: int = 0
    size: int = 1
    prepare: Callable[[nn.Module], nn.Module] = _as_it_is

    def of(self, count: int) -> slice:
        """This rank's share of `count` samples; shares differ by at most one and cover all samples."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def total(self, value: float, device: torch.device) -> float:
        """The sum over all ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return float(tensor)


WHOLE = WorkerShare()


class TrainingConfig(Protocol):
    """The settings that all training sections have in common."""

    @property
    def steps(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def micro_batch_size(self) -> int: ...


class LossOf(nn.Module):
    """A loss as the forward pass of a module: DistributedDataParallel averages gradients of a module's forward pass."""

    def __init__(self, network: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.network, self._loss = network, loss

    def forward(self, *inputs: Any) -> Tensor:
        return self._loss(*inputs)


class SupervisedTraining(ABC):
    """One training: a batch is drawn, then trained on. A subclass says what a batch is and when a step is taken.

    loss: mean loss of n samples, from n rows of each of `inputs`.
    section: of the configuration, for errors.
    Raises ConfigError for batches of fewer samples than ranks.
    """

    smoothing: ClassVar[tuple[float, float]] = (
        0.95,
        0.05,
    )  # of the reported loss: weights of the old and the new value

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        config: TrainingConfig,
        section: str,
        share: WorkerShare,
    ):
        check_batch(config, section, share.size)
        self.network, self.optimizer, self.generator, self.share = network, optimizer, generator, share
        self.num_steps = 0
        self.numbers: Numbers = {"loss": 0.0}  # saved beside the parts
        self._config, self._section = config, section
        self._num_skipped_in_a_row = 0
        self._loss = share.prepare(LossOf(network, loss))

    # -- for subclasses ------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def parts(self) -> Parts:
        """All state that the next step depends on besides configuration, data and `numbers`."""

    @abstractmethod
    def draw(self) -> Any:
        """The next batch; samples are chosen for all ranks and loaded for this one."""

    @abstractmethod
    def inputs(self, batch: Any) -> tuple[tuple[Sequence | Tensor, ...], int]:
        """What the loss of this rank's n samples is computed from, n rows each, and the number of samples of all ranks."""

    @abstractmethod
    def learning_rate_factor(self) -> float:
        """Factor on the learning rate in the next step."""

    @abstractmethod
    def update(self, loss: float) -> dict[str, float]:
        """Take or skip the step; gradients and `loss` are those of the whole batch. Returns the metrics to show."""

    def metrics(self) -> dict[str, float]:
        """What is reported of the whole training."""
        return dict(self.numbers)

    # -- a step --------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def batches(self) -> Iterator[Any]:
        """The batches of the remaining steps, each drawn lazily."""
        while self.num_steps < self._config.steps:
            yield self.draw()

    def step(self) -> dict[str, float]:
        return self.train_on(self.draw())

    def train_on(self, batch: Any) -> dict[str, float]:
        """One optimizer step; returns the metrics to show. Raises UserError if the training has diverged."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._config.learning_rate * self.learning_rate_factor()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(*self.inputs(batch))
        metrics = self.update(loss)
        self.num_steps += 1
        self._num_skipped_in_a_row = 0 if math.isfinite(loss) else self._num_skipped_in_a_row + 1
        check_skipped_in_a_row(
            self._num_skipped_in_a_row, self._config.steps, self._section, self._config.learning_rate
        )
        return metrics

    def _backward(self, inputs: tuple[Sequence | Tensor, ...], total: int) -> float:
        """Compute gradients of the mean loss over all `total` samples of all ranks; returns that loss."""
        count = len(inputs[0])
        size = self._config.micro_batch_size or count
        loss = 0.0
        for first in range(0, count, size):
            piece = tuple(rows[first : first + size] for rows in inputs)
            weight = len(piece[0]) / total
            is_last = first + size >= count
            with nullcontext() if is_last or self.share.size == 1 else self._without_exchange():
                mean = self._loss(*piece)
                # Gradients will be averaged over ranks: scale so that the average is the mean over all samples.
                (mean * (weight * self.share.size)).backward()
            loss += weight * float(mean.detach())
        return self.share.total(loss, self.device)

    def _without_exchange(self) -> Any:
        assert isinstance(self._loss, DistributedDataParallel)
        return self._loss.no_sync()

    def smooth(self, loss: float) -> float:
        """Add a loss to the reported running mean; returns the mean."""
        old, new = self.smoothing
        self.numbers["loss"] = loss if self.num_steps == 0 else old * self.numbers["loss"] + new * loss
        return self.numbers["loss"]

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, checkpoints: TrainingCheckpoints) -> None:
        """Save if a checkpoint is due. Raises `UserError` on a full disk."""
        checkpoints.save(self.num_steps, self.parts, self.numbers)

    def restore(self, checkpoints: TrainingCheckpoints) -> bool:
        """Restore the newest valid checkpoint; False if there is none."""
        restored = checkpoints.restore(self.parts)
        if restored is None:
            return False
        self.num_steps, numbers = restored
        self.numbers |= numbers
        return True


def run_training(
    training: SupervisedTraining,
    progress: Progress = lambda step, metrics: None,
    checkpoints: TrainingCheckpoints = NO_CHECKPOINTS,
) -> None:
    """Run all remaining steps, resuming from the newest checkpoint if any."""
    training.restore(checkpoints)
    go_on(training, progress, checkpoints)


def train_network(
    training: SupervisedTraining, progress: Progress, checkpoints: TrainingCheckpoints
) -> dict[str, float]:
    """Run all remaining steps with the network in training mode, and leave it in evaluation mode.

    Returns the training's metrics and the seconds.
    """
    started = time.monotonic()
    training.network.train()
    run_training(training, progress, checkpoints)
    training.network.eval()
    return {**training.metrics(), "seconds": time.monotonic() - started}


def go_on(training: SupervisedTraining, progress: Progress, checkpoints: TrainingCheckpoints) -> None:
    """Run all remaining steps from the current state."""
    for batch in training.batches():
        metrics = training.train_on(batch)
        progress(training.num_steps, metrics)
        training.save(checkpoints)


def check_batch(config: TrainingConfig, section: str, num_ranks: int) -> None:
    """Raises ConfigError if a rank would get no sample of a batch."""
    if config.batch_size < num_ranks:
        raise ConfigError(
            f"{section}.batch_size={config.batch_size} is less than the {num_ranks} workers of "
            f"cluster.training_workers; raise {section}.batch_size or lower cluster.training_workers"
        )


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name; for a network with adapters, the adapters."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
