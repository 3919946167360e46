"""The batch of an update, and the policy's log-probabilities of parts of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.config.algorithms import GroupSection
from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.types import Trajectories


@dataclass(frozen=True)
class Batch:
    """B trajectories of N decisions; each algorithm adds what else it needs."""

    images: dict[str, np.ndarray]  # camera -> [B, N, H, W, 3] uint8, the main one first: what the policy saw
    state: np.ndarray | None  # [B, N, S] float32
    instructions: tuple[str, ...]  # [B]
    metrics: dict[str, float]  # about the batch as a whole, logged with its update

    def __len__(self) -> int:
        return len(self.instructions)

    def observed(self, rows: slice, places: Tensor) -> Observation:
        """What the policy saw at places [n, 2] of a mini-batch."""
        first, second = places.unbind(1)
        texts, place = self.instructions[rows], (first.numpy(), second.numpy())
        return Observation(
            {camera: images[rows][place] for camera, images in self.images.items()},
            tuple(texts[i] for i in first.tolist()),
            None if self.state is None else self.state[rows][place],
        )

    def signature(self) -> str:
        """Hash of the batch: an interrupted update resumes only with exactly the same batch."""
        digest = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            for tensor in value.values() if isinstance(value, dict) else (value,):
                if isinstance(tensor, np.ndarray | Tensor):
                    digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ActionBatch(Batch):
    """A batch with the record of each decision, as `Policy.log_prob` takes it."""

    record: dict[str, Tensor]  # each [B, N, ...]
    mask: Tensor  # [B, N, L] bool: log-probabilities of actions executed before the end


class GroupSlice(NamedTuple):
    """The location of one admitted group: trajectory objects and rows of each, in the order of its members, and its outcomes."""

    pieces: tuple[tuple[int, tuple[int, int]], ...]
    success: np.ndarray  # [G] bool
    finish_step: np.ndarray  # [G] int64
    known: np.ndarray | None = None  # [G] bool: False where the outcome is unknown; None: all are known


def slices_of(groups: Sequence[GroupSlice], sources: Sequence[Trajectories]) -> list[Trajectories]:
    """The trajectories of each group."""
    return [Trajectories.joined([sources[source].rows(*rows) for source, rows in group.pieces]) for group in groups]


class Executes(Protocol):
    """The mask of a policy's log-probabilities, see `Policy.executed`."""

    @property
    def chunk_length(self) -> int: ...

    def executed(self, num_actions: Tensor) -> Tensor: ...


def executed_mask(policy: Executes, finish_step: Tensor, num_chunks: int) -> Tensor:
    """Steps executed [B] -> [B, N, L] bool: log-probabilities of actions before the finish step."""
    begins = torch.arange(num_chunks) * policy.chunk_length
    counts = (finish_step[:, None] - begins).clamp(0, policy.chunk_length)
    return policy.executed(counts.flatten()).unflatten(0, tuple(counts.shape))


class Blocks(NamedTuple):
    """Where the batch of an update is cut, in trajectories: into mini-batches, and these into blocks.

    A block is what the learner goes forward and backward through at once. The settings alone decide where it ends, so the
    order in which gradients are summed up is always the same.
    """

    minibatch: int
    size: int  # of a block; the last one of a mini-batch may be shorter

    @property
    def has_several(self) -> bool:
        """Whether a mini-batch is computed in more than one block."""
        return self.size < self.minibatch

    def end(self, begin: int) -> int:
        """Where the block ends that begins at trajectory `begin` of the batch."""
        return min(begin + self.size, begin - begin % self.minibatch + self.minibatch)

    def complete(self, num: int) -> int:
        """How many of the first `num` trajectories of a batch lie in whole blocks."""
        return num - num % self.minibatch % self.size


def blocks_of(config: Config) -> Blocks:
    """Of `groups_per_pass` groups each, or whole mini-batches."""
    training, group_size = config.training, config.rollout.group_size
    together = training.groups_per_pass * group_size if isinstance(training, GroupSection) else 0
    return Blocks(training.minibatch_trajectories, together or training.minibatch_trajectories)


# -- parts of a mini-batch ---------------------------------------------------------------------------------------


class Shares(Protocol):
    """How the processes of a learner share a mini-batch; all of them make the same calls in the same order."""

    def parts(self, places: Tensor, max_size: int = 0) -> list[Tensor]:
        """This process's share of places [n], cut into parts of at most `max_size` (0: one part); some may be empty.

        Every process has equally many parts.
        """

    def total(self, values: Tensor) -> Tensor:
        """Sum of values [n] over the processes."""


def parts_of(decided: Tensor, shares: Shares, max_size: int) -> list[Tensor]:
    """This process's parts [b, N] bool of the decisions [b, N] bool of a mini-batch, pass by pass."""
    parts = []
    for places in shares.parts(decided.flatten().nonzero()[:, 0], max_size):
        part = torch.zeros(decided.numel(), dtype=torch.bool)
        part[places] = True
        parts.append(part.view_as(decided))
    return parts


def places_of(part: Tensor, decided: Tensor) -> Tensor:
    """The places [n, 2] of a part; an arbitrary place if the part is empty.

    Where nothing is left for this process, the others cannot gather weights without it: what it computes does not count.
    """
    places = part.nonzero()
    return places if len(places) else decided.nonzero()[:1]


def chunk_logprobs(policy: Policy, batch: ActionBatch, rows: slice, places: Tensor, temperature: float) -> Tensor:
    """Differentiable log-probabilities [n, L] on the CPU of the decisions at places [n, 2] of a mini-batch."""
    first, second = places.unbind(1)
    record = {name: values[rows][first, second] for name, values in batch.record.items()}
    return policy.log_prob(batch.observed(rows, places), record, temperature).cpu()
