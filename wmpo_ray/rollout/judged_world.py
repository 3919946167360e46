"""A learned world in which trajectories end: the reward model watches while frames are imagined.

What comes after a success is never learned from, so it need not be imagined. Rows are computed in blocks of a fixed
number of slots: a block's shape decides how sums are rounded, and neither a row's slot nor its neighbours do. So a
trajectory comes out the same to the last bit whether others have ended or not, and with or without this world.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.core.interfaces import FramesMode, RewardModel, World
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import Observation, StartState, Transition

NOT_JUDGED = -1.0  # a probability below every threshold


class BlockWorld:
    """Steps another world in blocks of `slots` rows; the last block is filled up with copies (implements `World`).

    `slots` 0: all rows are one block, whose size is then that of the request.
    """

    def __init__(self, world: World, slots: int):
        if slots and "slots" not in world.abilities:
            raise ValueError(f"{type(world).__name__} cannot be stepped in parts; set rollout.slots=0")
        self.world, self.slots = world, slots
        self.chunk_length, self.context_frames, self.abilities = (
            world.chunk_length,
            world.context_frames,
            world.abilities,
        )

    def start(self, starts: Sequence[StartState]) -> tuple[Any, Observation]:
        return self.world.start(starts)

    def step_chunk(
        self, state: Any, actions: Tensor, seeds: list[int], frames: FramesMode = "all"
    ) -> tuple[Any, Transition]:
        """See `World`; all rows are stepped."""
        return self.step_rows(state, actions, seeds, np.arange(len(actions)), frames)

    def step_rows(
        self, state: Any, actions: Tensor, seeds: list[int], rows: np.ndarray, frames: FramesMode = "all"
    ) -> tuple[Any, Transition]:
        """The state after a chunk of the trajectories `rows` [m], and their transition; the others stay as they are."""
        if not self.slots:
            state, transition = self.world.step_chunk(state, actions, seeds, frames)
            return state, _rows(transition, rows)
        parts = []
        for places, number in self._blocks(rows):
            some = [seeds[i] for i in places.tolist()]
            block, transition = self.world.step_chunk(
                state.rows(places), actions[torch.from_numpy(places)], some, frames
            )
            kept = np.arange(number)
            state = state.with_rows(places[:number], block.rows(kept))
            parts.append(_rows(transition, kept))
        return state, _joined(parts)

    def _blocks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """(trajectory in each slot, how many of the slots count)."""
        for first in range(0, len(rows), self.slots):
            part = rows[first : first + self.slots]
            yield np.concatenate([part, np.repeat(part[-1:], self.slots - len(part))]), len(part)


@dataclass(frozen=True, eq=False)
class JudgedState:
    inner: Any
    instructions: tuple[str, ...]  # [B]
    recent: np.ndarray  # [B, n, H, W, 3] uint8: the newest frames, of which the next windows are made
    probabilities: np.ndarray  # [B, W] float32 of all windows of a whole trajectory; those not seen are not judged
    num_steps: int  # imagined so far
    finish: np.ndarray  # [B] int64: steps until the success, or so far
    done: np.ndarray  # [B] bool


class JudgedWorld:
    """Ends a trajectory at its first success, by the reward model's own decision (implements `World`).

    Its transitions say what succeeded and when, as an environment's do. `horizon`: frames of a whole trajectory.
    """

    def __init__(self, world: World, reward_model: RewardModel, min_steps: int, horizon: int, slots: int = 0):
        self.world, self.reward_model = BlockWorld(world, slots), reward_model
        self.min_steps, self.horizon = min_steps, horizon
        self.chunk_length, self.context_frames = world.chunk_length, world.context_frames
        self.abilities = world.abilities - {"slots"}

    def start(self, starts: Sequence[StartState]) -> tuple[JudgedState, Observation]:
        inner, observation = self.world.start(starts)
        num_windows = self.horizon + 2 - self.reward_model.clip_length
        nothing = np.zeros(len(starts), np.int64)
        probabilities = np.full((len(starts), num_windows), NOT_JUDGED, np.float32)
        frames, texts = observation.frames[:, None], observation.instructions
        return JudgedState(inner, texts, frames, probabilities, 0, nothing, nothing > 0), observation

    def step_chunk(
        self, state: JudgedState, actions: Tensor, seeds: list[int], frames: FramesMode = "all"
    ) -> tuple[JudgedState, Transition]:
        """Imagine the next chunk of the trajectories that have not ended; the frames of the others hold still."""
        rows = np.flatnonzero(~state.done)
        shown = np.repeat(state.recent[:, -1:], self.chunk_length, 1)
        inner = state.inner
        if len(rows):
            inner, made = self.world.step_rows(inner, actions, seeds, rows, "all")
            shown[rows] = made.frames
        seen = np.concatenate([state.recent, shown], 1)
        end = state.num_steps + self.chunk_length
        probabilities, texts = state.probabilities.copy(), state.instructions
        self._judge(seen, rows, texts, probabilities, end)
        scores = self.reward_model.decide(probabilities, self.min_steps, self.horizon)
        finish = np.where(scores.success, scores.finish_step, end)
        steps = np.where(state.done, 0, finish - state.finish)
        keep = min(self.reward_model.clip_length - 1, seen.shape[1])
        after = JudgedState(inner, texts, seen[:, -max(keep, 1) :].copy(), probabilities, end, finish, scores.success)
        observation = Observation.of(shown[:, -1], texts)
        transition = Transition(
            observation if frames != "none" else None,
            shown if frames == "all" else None,
            scores.success.copy(),
            scores.success.copy(),
            steps.astype(np.int64),
        )
        return after, transition

    def _judge(
        self, seen: np.ndarray, rows: np.ndarray, texts: tuple[str, ...], probabilities: np.ndarray, end: int
    ) -> None:
        """Fill in the probabilities of the windows that end in these frames [B, n, H, W, 3], which end at step `end`."""
        count = seen.shape[1] + 1 - self.reward_model.clip_length
        if count <= 0 or not len(rows):
            return
        with span("score"):
            found = self.reward_model.probabilities(seen[rows], [texts[i] for i in rows.tolist()])
        last = end + 2 - self.reward_model.clip_length  # a window that begins at w ends after w + L - 1 steps
        probabilities[rows, last - count : last] = found


def _rows(transition: Transition, rows: np.ndarray) -> Transition:
    return Transition(
        None if transition.observation is None else transition.observation.rows(rows),
        None if transition.frames is None else transition.frames[rows],
        transition.done[rows],
        None if transition.success is None else transition.success[rows],
        transition.num_steps[rows],
        {name: flags[rows] for name, flags in transition.failures.items()},
    )


def _joined(parts: Sequence[Transition]) -> Transition:
    first = parts[0]

    def together(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    observation = None
    if first.observation is not None:
        seen = [part.observation for part in parts if part.observation is not None]
        observation = Observation(
            {camera: np.concatenate([each.images[camera] for each in seen]) for camera in first.observation.images},
            tuple(text for each in seen for text in each.instructions),
        )
    return replace(
        first,
        observation=observation,
        frames=together("frames"),
        done=together("done"),
        success=together("success"),
        num_steps=together("num_steps"),
        failures={name: np.concatenate([part.failures[name] for part in parts]) for name in first.failures},
    )
