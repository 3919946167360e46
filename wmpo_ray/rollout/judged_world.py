"""A learned world in which trajectories end: the reward model watches while frames are imagined.

What comes after a success is never learned from, so it need not be imagined. Trajectories may be of different ages side
by side: in `slots.py` another one takes the place of one that has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from wmpo_ray.core.interfaces import FramesMode, RewardModel, World
from wmpo_ray.core.observations import Observation, StartState, Transition
from wmpo_ray.core.timeline import span

NOT_JUDGED = -1.0  # a probability below every threshold


@dataclass(frozen=True, eq=False)
class JudgedState:
    inner: Any
    instructions: tuple[str, ...]  # [B]
    recent: np.ndarray  # [B, n, H, W, 3] uint8: the newest frames, of which the next windows are made
    probabilities: np.ndarray  # [B, W] float32 of all windows of a whole trajectory; those not seen are not judged
    num_steps: np.ndarray  # [B] int64: imagined so far
    finish: np.ndarray  # [B] int64: steps until the success, or so far
    done: np.ndarray  # [B] bool

    def rows(self, rows: np.ndarray) -> JudgedState:
        """That of the trajectories `rows` [m], which may occur more than once."""
        texts = tuple(self.instructions[i] for i in rows.tolist())
        return JudgedState(self.inner.rows(rows), texts, *(values[rows] for values in self._arrays))

    def with_rows(self, rows: np.ndarray, part: JudgedState) -> JudgedState:
        """This one with its trajectories `rows` [m], each at most once, as in `part`; the others stay as they are."""
        texts, arrays = list(self.instructions), []
        for row, text in zip(rows.tolist(), part.instructions, strict=True):
            texts[row] = text
        for ours, theirs in zip(self._arrays, part._arrays, strict=True):
            arrays.append(ours.copy())
            arrays[-1][rows] = theirs
        return JudgedState(self.inner.with_rows(rows, part.inner), tuple(texts), *arrays)

    @property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.recent, self.probabilities, self.num_steps, self.finish, self.done


class JudgedWorld:
    """Ends a trajectory at its first success, by the reward model's own decision (implements `World`).

    Its transitions say what succeeded and when, as an environment's do. `horizon`: frames of a whole trajectory.
    """

    def __init__(self, world: World, reward_model: RewardModel, min_steps: int, horizon: int):
        self.world, self.reward_model = world, reward_model
        self.min_steps, self.horizon = min_steps, horizon
        self.chunk_length, self.context_frames = world.chunk_length, world.context_frames
        self.abilities = world.abilities

    def start(self, starts: Sequence[StartState]) -> tuple[JudgedState, Observation]:
        inner, observation = self.world.start(starts)
        num_windows = self.horizon + 2 - self.reward_model.clip_length
        nothing = np.zeros(len(starts), np.int64)
        probabilities = np.full((len(starts), num_windows), NOT_JUDGED, np.float32)
        # As many as a whole window needs beside the next frame: windows that begin before the start are not judged.
        recent = np.repeat(observation.frames[:, None], max(self.reward_model.clip_length - 1, 1), 1)
        texts = observation.instructions
        return JudgedState(inner, texts, recent, probabilities, nothing, nothing, nothing > 0), observation

    def step_chunk(
        self, state: JudgedState, actions: Tensor, seeds: list[int], frames: FramesMode = "all"
    ) -> tuple[JudgedState, Transition]:
        """Imagine the next chunk; the frames of trajectories that have ended hold still."""
        if state.done.all():
            made_frames, inner = np.repeat(state.recent[:, -1:], self.chunk_length, 1), state.inner
        else:
            inner, made = self.world.step_chunk(state.inner, actions, seeds, "all")
            assert made.frames is not None
            made_frames = made.frames
        shown = np.where(state.done[:, None, None, None, None], state.recent[:, -1:], made_frames)
        seen = np.concatenate([state.recent, shown], 1)
        end = state.num_steps + self.chunk_length
        probabilities = state.probabilities.copy()
        self._judge(seen, np.flatnonzero(~state.done), state.instructions, probabilities, end)
        scores = self.reward_model.decide(probabilities, self.min_steps, self.horizon)
        finish = np.where(scores.success, scores.finish_step, end)
        after = replace(
            state,
            inner=inner,
            recent=seen[:, self.chunk_length :].copy(),
            probabilities=probabilities,
            num_steps=end,
            finish=finish,
            done=scores.success,
        )
        transition = Transition(
            Observation.of(shown[:, -1], state.instructions) if frames != "none" else None,
            shown if frames == "all" else None,
            scores.success.copy(),
            scores.success.copy(),
            np.where(state.done, 0, finish - state.finish).astype(np.int64),
        )
        return after, transition

    def _judge(
        self, seen: np.ndarray, rows: np.ndarray, texts: tuple[str, ...], probabilities: np.ndarray, end: np.ndarray
    ) -> None:
        """Fill in the probabilities of the windows that end in these frames [B, n, H, W, 3], which end at steps [B]."""
        length = self.reward_model.clip_length
        rows = rows[end[rows] >= length - 1]  # a window that begins at w ends after w + L - 1 steps
        if not len(rows):
            return
        with span("score"):
            found = self.reward_model.probabilities(seen[rows], [texts[i] for i in rows.tolist()])
        windows = (end[rows] + 2 - length)[:, None] - np.arange(found.shape[1], 0, -1)
        is_whole = windows >= 0
        places = np.broadcast_to(rows[:, None], windows.shape)
        probabilities[places[is_whole], windows[is_whole]] = found[is_whole]
