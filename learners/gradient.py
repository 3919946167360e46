"""The gradient of a mini-batch, summed up block by block."""

from __future__ import annotations

from typing import Any

import torch

from learners.minibatches import Block
from learners.sharding import MetricMeans, Ranks
from wmpo_ray.algorithms.base import Algorithm, OnlineAlgorithm


class GradientSum:
    """Adds up the gradients of a mini-batch's blocks in `.grad` of the policy's parameters, in the order of the batch.

    What the loss of a mini-batch is divided by, such as its trajectories of known outcome, is known with its last block
    only. So the loss of each block, which is a mean over the block, counts as often as there are values in it, and the sum
    is divided once at the end. A mini-batch in one block counts once and is not divided.
    """

    def __init__(self, algorithm: Algorithm, policy: Any, ranks: Ranks, in_blocks: bool):
        self._algorithm, self._policy, self._ranks, self._in_blocks = algorithm, policy, ranks, in_blocks
        self._loss, self._weight, self._means = 0.0, 0.0, MetricMeans()

    def add(self, block: Block) -> None:
        """Go forward and backward; blocks of other mini-batches must not come in between."""
        weight = self._weight_of(block)
        for part in self._algorithm.losses(self._policy, block.batch, block.rows, self._ranks):
            loss = part.loss * weight
            loss.backward()
            self._loss += float(loss.detach())
            self._means.add(part.metrics, part.weight)
        self._weight += weight

    def _weight_of(self, block: Block) -> float:
        if not self._in_blocks:
            return 1.0
        assert isinstance(self._algorithm, OnlineAlgorithm)
        return self._algorithm.loss_weight(block.batch, block.rows)

    def finish(self) -> tuple[float, dict[str, float]]:
        """Make the sums means; returns the loss and the metrics of the mini-batch, over all ranks."""
        divisor = max(self._weight, 1.0)
        if divisor != 1.0:
            for parameter in self._policy.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(divisor)
        loss = float(self._ranks.total(torch.tensor([self._loss / divisor], dtype=torch.float64)))
        return loss, self._means.over(self._ranks)
