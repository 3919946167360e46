"""A second family of the embedded task: push the block onto the mark on the floor that the instruction names.

The scene, the motion and the actions are those of the pocket task, pockets included, which nobody asks for here; two marks,
a blue and a pink one, lie on the floor, one above the other. The block must lie within its mark, of which a rim still shows
around it, for `MARK_DWELL` frames, in the gripper or not. What can go wrong besides a miss and a jam: a block let go beside its mark (drop), a block left on the other mark (wrong mark).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wmpo_ray.environments.pocket.env import Disruption, PocketEnvironment
from wmpo_ray.environments.pocket.geometry import (
    FRAME_SIZE,
    MARK_DWELL,
    MARK_TOLERANCE,
    PUSH_INSTRUCTIONS,
)
from wmpo_ray.environments.pocket.rendering import detect_events, draw_marks, see, see_marks
from wmpo_ray.environments.pocket.sight import READING_SLACK, moves_seen, within

# Corners of where the middle of the upper and of the lower mark may lie: none reaches beyond the floor or onto the other.
FLOOR = (((2.5, 2.5), (8.0, 5.2)), ((2.5, 10.8), (8.0, 13.5)))
APART = 3.0  # pixels along some axis, at the start between the block and either mark
SPEED = 1.5  # of the expert, pixels a frame


class PushEnvironment(PocketEnvironment):
    """N scenes of the task "push" (implements `wmpo_ray.core.interfaces.Environment`)."""

    instructions = PUSH_INSTRUCTIONS
    tasks = ("push",)
    failure_names = ("miss", "jam", "drop", "wrong_mark")

    def __init__(
        self, horizon: int = 32, disruption: Disruption = "none", ends_on_success: bool = True, task: str = "push"
    ):
        super().__init__(horizon, disruption, ends_on_success, task)

    def reset(self, seeds: Sequence[int] | np.ndarray, render: bool = True) -> np.ndarray | None:
        self.marks = np.zeros((len(seeds), 2, 2))  # the middle of the blue and of the pink one
        self._num_wrong = np.zeros(len(seeds), np.int64)  # frames in a row in which the block lay on the other mark
        return super().reset(seeds, render)

    def _place(self, i: int, rng: np.random.Generator) -> None:
        while True:
            super()._place(i, rng)
            places = np.array([rng.uniform(*corners) for corners in FLOOR])
            if (np.abs(places - self.block[i]).max(1) >= APART).all():
                break
        self.marks[i] = places[rng.permutation(2)]

    def _parts(self) -> dict[str, np.ndarray]:
        return super()._parts() | {"marks": self.marks, "_num_wrong": self._num_wrong}

    def _judge(self) -> None:
        active = ~self.terminated
        wrong = self._covers(self._mark(1 - self.goal))
        self._num_wrong = np.where(active, np.where(wrong, self._num_wrong + 1, 0), self._num_wrong)
        self.failures["wrong_mark"] |= self._num_wrong >= MARK_DWELL
        placed = ~self._is_astray()
        self._num_placed = np.where(active, np.where(placed, self._num_placed + 1, 0), self._num_placed)
        self.success = self.success & self.terminated | (self._num_placed >= MARK_DWELL)
        if self.ends_on_success:
            self.terminated = self.terminated | self.success

    def _is_astray(self) -> np.ndarray:
        return ~self._covers(self._mark(self.goal))

    def _covers(self, marks: np.ndarray) -> np.ndarray:
        """Scenes [N] whose block is on a mark [N, 2]."""
        return (np.abs(self.block - marks) <= MARK_TOLERANCE).all(1)

    def _mark(self, colour: np.ndarray) -> np.ndarray:
        return self.marks[np.arange(len(colour)), colour]

    def backdrop(self) -> np.ndarray:
        if self._backdrop is None:
            self._backdrop = draw_marks(super().backdrop(), self.marks)
        return self._backdrop

    def expert_action(self, rng: np.random.Generator, noise: float = 0.2) -> np.ndarray:
        """Actions [N, 3] of a controller that sees the state; `noise` in pixels is added to its targets."""
        target = np.where(self.held[:, None], self._mark(self.goal), self.block)
        delta = target - self.gripper
        delta *= np.minimum(1.0, SPEED / np.maximum(np.abs(delta).max(1, keepdims=True), 1e-6))
        goal = self.gripper + delta
        near = (np.abs(self.block - goal) < 0.6).all(1)
        half = FRAME_SIZE / 2
        position = (goal + rng.normal(0, noise, goal.shape) - half) / half
        grip = np.where(self.held | (near & ~self.closed), 0.6, -0.6) + rng.normal(0, 0.1, len(goal))
        return np.clip(np.concatenate([position, grip[:, None]], 1), -1, 1).astype(np.float32)

    # -- what videos show ------------------------------------------------------------------------------------------

    @staticmethod
    def detect_events(videos: np.ndarray) -> dict[str, np.ndarray]:
        """Those of the pocket task, and `marked` [N]: the block covered a mark for `MARK_DWELL` frames."""
        marks, block = see_marks(videos[:, 0]), see(videos).block
        covered = np.asarray(_covering(block[:, :, None], marks[:, None]).any(-1))  # [N, T+1]
        return detect_events(videos) | {"marked": np.asarray(_in_a_row(covered).any(1))}

    @staticmethod
    def detect_failures(
        videos: np.ndarray, actions: np.ndarray, instructions: Sequence[str], lengths: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The environment's `failures` as pixels show them, see `AbleEnvironment.detect_failures`."""
        moves, marks = moves_seen(videos, actions), see_marks(videos[:, 0])
        goal = np.array([PUSH_INSTRUCTIONS.index(text) for text in instructions], np.int64)
        rows = np.arange(len(goal))
        wanted, other = (_covering(moves.block, marks[rows, colour][:, None]) for colour in (goal, 1 - goal))
        found = {"miss": moves.miss, "jam": moves.jam, "drop": moves.released & ~wanted, "wrong_mark": _in_a_row(other)}
        return within(found, lengths)


def _covering(block: np.ndarray, mark: np.ndarray) -> np.ndarray:
    """Whether blocks [..., 2] cover marks [..., 2], as far as pixels show it; not where either is NaN."""
    return (np.abs(block - mark) <= MARK_TOLERANCE + READING_SLACK).all(-1)


def _in_a_row(flags: np.ndarray) -> np.ndarray:
    """Steps [N, T] after which a flag has been set for `MARK_DWELL` frames."""
    found = flags.copy()
    for back in range(1, MARK_DWELL):
        found[:, back:] &= flags[:, :-back]
        found[:, :back] = False
    return found
