"""What stands for weights in a simulation: a hash of everything that an optimizer step may depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wmpo_ray.core.types import WeightVersion

Key = tuple[int, int]  # update, attempt


@dataclass(frozen=True)
class Payload:
    """Weights on their way; `base`: digest of those that a delta starts from."""

    version: WeightVersion
    base: str = ""


@dataclass(frozen=True)
class SavedLearner:
    """What a checkpoint of the learner holds."""

    digests: tuple[str, ...]  # of all versions so far; the last one is its own
    trained: tuple[tuple[Key, ...], ...] = ()  # keys of the groups of every update so far
    history: tuple[dict[str, float], ...] = ()


def digest_of(*parts: object) -> str:
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def trained_digest(before: str, groups: Sequence[tuple[Sequence[Any], np.ndarray]], minibatch: int) -> str:
    """Digest of the weights after an update on (trajectories, success [G]) of groups in this order, step by step."""
    steps = SimulatedSteps(before, minibatch)
    for rows, success in groups:
        steps.add(rows, success)
    return steps.finish()


class SimulatedSteps:
    """The weights inside an update: each step changes them by `minibatch` trajectories, and by their order."""

    def __init__(self, before: str, minibatch: int):
        self.digest, self.minibatch = before, minibatch
        self.keys: list[Key] = []  # of the groups so far
        self._waiting: list[tuple[Any, bool]] = []

    def add(self, rows: Sequence[Any], success: np.ndarray) -> None:
        self.keys.append(rows[0].key)
        self._waiting += zip(rows, success.tolist(), strict=True)
        while len(self._waiting) >= self.minibatch:
            self._step()

    def _step(self) -> None:
        chosen, self._waiting = self._waiting[: self.minibatch], self._waiting[self.minibatch :]
        self.digest = digest_of(self.digest, *chosen)

    def finish(self) -> str:
        """The digest after the last step, on what is left."""
        if self._waiting:
            self._step()
        return self.digest
