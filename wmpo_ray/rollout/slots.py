"""Rollouts in a fixed number of slots: a trajectory that ends leaves its slot to the next one that waits.

A batch's shape decides how sums are rounded; neither a row's slot nor its neighbours do. So with every call of the
policy and of the world at the same number of rows, slots that nobody needs filled with copies, a trajectory comes out
the same to the last bit alone, in company and in any slot, whatever request it is part of.

M trajectories, S slots, N decisions each, K actions and frames per decision, T = N*K.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Decision, FramesMode, Policy, World
from wmpo_ray.core.observations import Observation, Rollout, StartState, Transition
from wmpo_ray.core.timeline import span

SeedOf = Callable[[str, int, int], int]
"""(purpose, trajectory, number of its chunk) -> seed; the purposes are "act" and "step"."""


class NothingWantedError(Exception):
    """No trajectory is wanted any more."""


def check_slots(world: World, num_slots: int) -> None:
    """Raises ConfigError for a world whose states cannot be cut into trajectories."""
    if num_slots and "slots" not in world.abilities:
        raise ConfigError(f"{type(world).__name__} cannot be stepped in parts; set rollout.slots=0")


def act_in_slots(
    policy: Policy,
    world: World,
    starts: Sequence[StartState],
    num_chunks: int,
    temperature: float,
    seed_of: SeedOf,
    num_slots: int,
    *,
    frames: FramesMode = "all",
    progress: Callable[[], None] = lambda: None,
    is_wanted: Callable[[int], bool] = lambda row: True,
) -> Rollout:
    """Let the policy decide up to `num_chunks` times in each trajectory, `num_slots` of them at a time.

    `frames` is "all", or "last" for the frames that the policy sees and no others. After the end of a trajectory its last
    decision and its last frame repeat. `progress` is called after every chunk of the slots; `is_wanted` is asked then
    about every trajectory, and one that is not wanted leaves: what was not rolled out of it is zero.
    Raises NothingWantedError once that holds for all, and ConfigError for a world that cannot be stepped in parts.
    """
    check_slots(world, num_slots)
    state, first = _started(world, starts, num_slots)
    track = _Rows(first, num_chunks)
    waiting, present = deque(range(len(starts))), list[int]()
    while True:
        present = [row for row in present if not track.is_over(row) and is_wanted(row)]
        while waiting and len(present) < num_slots:
            if is_wanted(row := waiting.popleft()):
                present.append(row)
        if not present:
            return track.rollout(any(map(is_wanted, range(len(starts)))))
        rows = np.array(present + present[-1:] * (num_slots - len(present)))
        seeds = track.seeds(rows, seed_of)
        with span("policy"):
            decision = policy.act(track.observation.rows(rows), temperature, seeds["act"])
        after, made = world.step_chunk(state.rows(rows), decision.actions, seeds["step"], frames)
        kept = np.arange(len(present))
        state = state.with_rows(rows[kept], after.rows(kept))
        track.add(rows[kept], made, decision)
        progress()


def _started(world: World, starts: Sequence[StartState], num_slots: int) -> tuple[Any, Observation]:
    """The states and first observations of all trajectories, begun `num_slots` at a time."""
    state: Any = None
    seen = []
    for first in range(0, len(starts), num_slots):
        part = list(starts[first : first + num_slots])
        block, observation = world.start(part + part[-1:] * (num_slots - len(part)))
        rows = np.arange(len(part))
        state = block.rows(np.zeros(len(starts), np.int64)) if state is None else state
        state = state.with_rows(first + rows, block.rows(rows))
        seen.append(observation.rows(rows))
    return state, Observation.joined(seen)


class _Rows:
    """What has been rolled out of every trajectory."""

    def __init__(self, first: Observation, num_chunks: int):
        self.first, self.num_chunks = first, num_chunks
        self.observation = Observation(
            {camera: images.copy() for camera, images in first.images.items()},
            first.instructions,
            None if first.state is None else first.state.copy(),
        )
        count = len(first)
        self.num_decided, self.lengths = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._done = np.zeros(count, bool)
        self._success: np.ndarray | None = None
        self._failures: dict[str, np.ndarray] = {}
        self._frames: np.ndarray | None = None
        self._kept: dict[str, np.ndarray] = {}  # [M, N, ...] each

    def seeds(self, rows: np.ndarray, seed_of: SeedOf) -> dict[str, list[int]]:
        """Purpose -> one seed for each of the trajectories `rows` [S], for its next chunk."""
        about = list(zip(rows.tolist(), self.num_decided[rows].tolist(), strict=True))
        return {purpose: [seed_of(purpose, row, chunk) for row, chunk in about] for purpose in ("act", "step")}

    def is_over(self, row: int) -> bool:
        return bool(self._done[row]) or self.num_decided[row] == self.num_chunks

    def add(self, rows: np.ndarray, made: Transition, decision: Decision) -> None:
        """A chunk of the trajectories `rows` [m]; the values of the other slots are ignored."""
        seen = {f"images.{camera}": images[rows] for camera, images in self.observation.images.items()}
        if self.observation.state is not None:
            seen["state"] = self.observation.state[rows]
        decided = {f"record.{name}": values.numpy() for name, values in decision.record.items()}
        decided |= {"actions": decision.actions.numpy(), "logprobs": decision.logprobs.numpy()}
        for name, values in (seen | decided).items():
            if name not in self._kept:
                shape = (len(self.lengths), self.num_chunks, *values.shape[1:])
                self._kept[name] = np.zeros(shape, values.dtype)
            self._kept[name][rows, self.num_decided[rows]] = values[: len(rows)]
        self._see(rows, made)
        self.num_decided[rows] += 1

    def _see(self, rows: np.ndarray, made: Transition) -> None:
        count, observation = len(rows), made.observation
        assert observation is not None, 'a policy sees nothing with frames="none"'
        for camera, images in self.observation.images.items():
            images[rows] = observation.images[camera][:count]
        if self.observation.state is not None and observation.state is not None:
            self.observation.state[rows] = observation.state[:count]
        self.lengths[rows] += made.num_steps[:count]
        self._done[rows] = made.done[:count]
        if made.success is not None:
            self._success = np.zeros(len(self.lengths), bool) if self._success is None else self._success
            self._success[rows] = made.success[:count]
        for name, flags in made.failures.items():
            self._failures.setdefault(name, np.zeros(len(self.lengths), bool))[rows] = flags[:count]
        if made.frames is not None:
            self._show(rows, made.frames[:count])

    def _show(self, rows: np.ndarray, chunk: np.ndarray) -> None:
        """Keep frames [m, K, H, W, 3]."""
        size = chunk.shape[1]
        if self._frames is None:
            shape = (len(self.lengths), self.num_chunks * size + 1, *chunk.shape[2:])
            self._frames = np.zeros(shape, chunk.dtype)
            self._frames[:, 0] = self.first.frames
        steps = 1 + self.num_decided[rows, None] * size + np.arange(size)
        self._frames[rows[:, None], steps] = chunk

    def rollout(self, is_wanted: bool) -> Rollout:
        """Raises NothingWantedError where nobody wants it."""
        if not is_wanted:
            raise NothingWantedError
        kept = self._kept
        for row in np.flatnonzero(self.num_decided < self.num_chunks).tolist():  # what it ended with repeats
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
