"""What has been rolled out of trajectories that are of different ages."""

from __future__ import annotations

import numpy as np

from wmpo_ray.core.interfaces import Decision
from wmpo_ray.core.observations import Observation, Rollout, Transition


class SlotTrack:
    """M trajectories of up to N decisions, or `limits` [M]; `first`: what was seen at their start."""

    def __init__(self, first: Observation, num_chunks: int, limits: np.ndarray | None = None):
        self.first, self.num_chunks = first, num_chunks
        count = len(first)
        self._limits = np.full(count, num_chunks) if limits is None else limits
        self.num_decided, self.lengths = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._done = np.zeros(count, bool)
        self._success: np.ndarray | None = None
        self._failures: dict[str, np.ndarray] = {}
        self._frames: np.ndarray | None = None
        self._kept: dict[str, np.ndarray] = {}  # [M, N, ...] each

    def is_over(self, row: int) -> bool:
        return bool(self._done[row]) or bool(self.num_decided[row] == self._limits[row])

    def add(self, rows: np.ndarray, slots: np.ndarray, seen: Observation, made: Transition, decision: Decision) -> None:
        """A chunk of the trajectories `rows` [m], which stand in the slots [m] of what was seen, decided and made."""
        parts = {f"images.{camera}": images for camera, images in seen.images.items()}
        if seen.state is not None:
            parts["state"] = seen.state
        parts |= {f"record.{name}": values.numpy() for name, values in decision.record.items()}
        parts |= {"actions": decision.actions.numpy(), "logprobs": decision.logprobs.numpy()}
        for name, values in parts.items():
            if name not in self._kept:
                shape = (len(self.lengths), self.num_chunks, *values.shape[1:])
                self._kept[name] = np.zeros(shape, values.dtype)
            self._kept[name][rows, self.num_decided[rows]] = values[slots]
        if made.frames is not None:
            self._show(rows, made.frames[slots])
        self._note(rows, slots, made)
        self.num_decided[rows] += 1

    def _note(self, rows: np.ndarray, slots: np.ndarray, made: Transition) -> None:
        """How they stand after the chunk."""
        self.lengths[rows] += made.num_steps[slots]
        self._done[rows] = made.done[slots]
        if made.success is not None:
            self._success = np.zeros(len(self.lengths), bool) if self._success is None else self._success
            self._success[rows] = made.success[slots]
        for name, flags in made.failures.items():
            self._failures.setdefault(name, np.zeros(len(self.lengths), bool))[rows] = flags[slots]

    def _show(self, rows: np.ndarray, chunk: np.ndarray) -> None:
        """Keep frames [m, K, H, W, 3]."""
        size = chunk.shape[1]
        if self._frames is None:
            shape = (len(self.lengths), self.num_chunks * size + 1, *chunk.shape[2:])
            self._frames = np.zeros(shape, chunk.dtype)
            self._frames[:, 0] = self.first.frames
        steps = 1 + self.num_decided[rows, None] * size + np.arange(size)
        self._frames[rows[:, None], steps] = chunk

    def rollout(self) -> Rollout:
        """After the end of a trajectory its last decision and its last frame repeat."""
        kept = self._kept
        for row in np.flatnonzero(self.num_decided < self.num_chunks).tolist():
            num_decided = int(self.num_decided[row])
            for values in kept.values():
                values[row, num_decided:] = values[row, max(num_decided, 1) - 1]
            if self._frames is not None:
                steps = num_decided * (self._frames.shape[1] - 1) // self.num_chunks
                self._frames[row, steps + 1 :] = self._frames[row, steps]
        images = {camera: kept[f"images.{camera}"] for camera in self.first.images}
        return Rollout(
            self.first.instructions,
            Observation(images, self.first.instructions, kept.get("state")),
            {name.removeprefix("record."): values for name, values in kept.items() if name.startswith("record.")},
            kept["logprobs"],
            kept["actions"],
            self._frames,
            self.lengths,
            self._success,
            self._failures,
        )
