"""What videos of the pocket task show: events, positions and failures, read from pixels alone.

So they can be asked of imagined videos, which no simulator knows anything about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wmpo_ray.core.interfaces import AGENT
from wmpo_ray.environments.pocket.geometry import (
    BLOCK_HALF,
    FRAME_SIZE,
    INSTRUCTIONS,
    MAX_SPEED,
    POCKET_END_X,
    POCKET_TOLERANCE,
    SEATED_X,
    WALL_X,
)
from wmpo_ray.environments.pocket.rendering import detect_events, see

READING_SLACK = 0.4  # pixels by which a position may be misread
STOP_SLACK = 0.25  # the same of a gripper that stops at the wall
APART = 1.5  # pixels between gripper and block that no longer are together


class PocketSight:
    """The abilities "events", "locate" and "failures" of the pocket environment."""

    position_unit = "pixels"

    @staticmethod
    def detect_events(videos: np.ndarray) -> dict[str, np.ndarray]:
        """Events that pixels show, for real and imagined videos alike: name -> [N] bool."""
        return detect_events(videos)

    @staticmethod
    def locate(frames: np.ndarray) -> dict[str, np.ndarray]:
        """Centres of gripper and block in frames [..., H, W, 3] -> [..., 2] in pixels, NaN where nothing of it shows."""
        seen = see(frames)
        return {AGENT: seen.gripper, "block": seen.whole_block}

    @staticmethod
    def detect_failures(
        videos: np.ndarray, actions: np.ndarray, instructions: Sequence[str], lengths: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The environment's `failures` as pixels show them, see `AbleEnvironment.detect_failures`."""
        moves = moves_seen(videos, actions)
        aside = np.abs(moves.block[..., 1] - _goal_height(videos[:, 0], instructions)[:, None])
        wrong = moves.inside & (aside > POCKET_TOLERANCE + READING_SLACK)
        found = {
            "miss": moves.miss,
            "jam": moves.jam,
            "drop": moves.released & ~moves.inside,
            "wrong_pocket": wrong,
        }
        return within(found, lengths)


class Moves(NamedTuple):
    """What M videos of T steps show of each step, [M, T] bool, and where the block is after it."""

    miss: np.ndarray
    jam: np.ndarray
    released: np.ndarray  # a block that was carried is let go
    inside: np.ndarray  # the block is deep in a pocket
    block: np.ndarray  # [M, T, 2] pixels


def moves_seen(videos: np.ndarray, actions: np.ndarray) -> Moves:
    """Read from frames [M, T+1, H, W, 3] and actions [M, T, D]."""
    seen = see(videos)
    gripper, block, closed = ((v[:, :-1], v[:, 1:]) for v in (seen.gripper, seen.block, seen.closed))
    closing = closed[1] & ~closed[0]
    # An empty gripper that passes over the block looks for one frame as if it held it.
    carried = np.zeros_like(closing)
    carried[:, 1:] = seen.held[:, 1:-1] & (seen.held[:, :-2] | closing[:, :-1])  # before each step
    apart = np.abs(gripper[1] - block[1]).max(-1) > APART
    return Moves(
        miss=closing & ~seen.held[:, 1:],
        jam=carried & _falls_short(gripper[0][..., 0], seen.whole_block[:, 1:, 0], actions[..., 0]),
        released=carried & (~closed[1] | apart),
        inside=block[1][..., 0] >= SEATED_X - READING_SLACK,
        block=block[1],
    )


def within(found: dict[str, np.ndarray], lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Which flags [M, T] are ever set within the first `lengths` [M] steps: name -> [M] bool."""
    if not found:
        return {}
    num_steps = next(iter(found.values())).shape[1]
    counts = np.arange(1, num_steps + 1)[None] <= np.asarray(lengths)[:, None]
    return {name: np.asarray((flags & counts).any(1)) for name, flags in found.items()}


def _falls_short(before: np.ndarray, after: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Where a block in the gripper was sent into the wall and stopped at its face.

    x [M, T] of the gripper before each step and of the block after it, and the first component of the actions [M, T].
    """
    half, face = FRAME_SIZE / 2, WALL_X - BLOCK_HALF
    wanted = before + np.clip(half + half * np.clip(action, -1, 1) - before, -MAX_SPEED, MAX_SPEED)
    return (before <= face + STOP_SLACK) & (np.abs(after - face) <= STOP_SLACK) & (wanted > after + STOP_SLACK)


def _goal_height(frames: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
    """Height [M] of the pocket that each instruction names, from frames [M, H, W, 3] with nothing in the pockets."""
    column = frames[:, :, int(SEATED_X) : int(POCKET_END_X)].astype(np.float32).mean(2)
    red, green, blue = column[..., 0], column[..., 1], column[..., 2]
    blueness, pinkness = np.clip((blue - red - 30) / 60, 0, 1), np.clip((red - green - 30) / 60, 0, 1)
    goals = np.array([INSTRUCTIONS.index(text) for text in instructions], np.int64)
    weight = np.where(goals[:, None] == 0, blueness, pinkness)
    return (weight * (np.arange(FRAME_SIZE) + 0.5)).sum(1) / np.maximum(weight.sum(1), 1e-6)
