"""Pixels of the pocket task: anti-aliased rectangles, and the events that can be read back from a frame.

One pixel is one unit of length. Coverage is computed exactly, so that a position can be read from a frame to a
fraction of a pixel, by a network or by `detect_events`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from wmpo_ray.environments.pocket.geometry import (
    BLOCK_HALF,
    FRAME_SIZE,
    MARK_HALF,
    POCKET_END_X,
    POCKET_HALF,
    SEATED_X,
    WALL_X,
)

BACKGROUND = np.array([40, 44, 52], np.float32)
WALL = np.array([110, 112, 120], np.float32)
POCKET_COLOURS = np.array([[70, 130, 240], [230, 70, 150]], np.float32) * 0.6  # blue, pink
BLOCK_FREE = np.array([225, 110, 40], np.float32)
BLOCK_HELD = np.array([250, 215, 60], np.float32)
GRIPPER_OPEN = np.array([240, 240, 240], np.float32)
GRIPPER_CLOSED = np.array([60, 220, 120], np.float32)
GRIPPER_OPEN_HALF = 1.2
GRIPPER_CLOSED_HALF = 1.0
SHOWN_MASS = 0.7  # pixels of its colour that make a gripper

_PIXEL = np.arange(FRAME_SIZE, dtype=np.float32)


@dataclass(frozen=True)
class Look:
    """Appearance of a scene; the disruptions of the paper's Table 2 change it and nothing else."""

    background_checks: float = 0.0  # squares of 2x2 pixels, by turns lighter and darker by this share; the mean stays
    block_stripes: float = 0.0  # darkening of every second pixel row of the block, 0 to 1


def _coverage(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Share of each pixel between `low` and `high`: [...] -> [..., FRAME_SIZE] in [0, 1]."""
    return np.clip(np.minimum(_PIXEL + 1, high[..., None]) - np.maximum(_PIXEL, low[..., None]), 0, 1)


def _paint(image, x_low, x_high, y_low, y_high, colour) -> None:
    """Blend rectangles into `image` [..., H, W, 3] in place; `colour` is [3] or [..., 3]."""
    alpha = (_coverage(y_low, y_high)[..., :, None] * _coverage(x_low, x_high)[..., None, :])[..., None]
    image *= 1 - alpha
    image += (colour[..., None, None, :] if colour.ndim > 1 else colour) * alpha


def draw_backdrop(pocket_y: np.ndarray, pocket_colour: np.ndarray, look: Look = Look()) -> np.ndarray:
    """Wall and pockets, which never move: pocket_y [N, 2], pocket_colour [N, 2] -> [N, H, W, 3] float32."""
    n = len(pocket_y)
    image = np.broadcast_to(BACKGROUND, (n, FRAME_SIZE, FRAME_SIZE, 3)).copy()
    if look.background_checks:
        square = np.arange(FRAME_SIZE) // 2
        sign = 1 - 2 * ((square + square[:, None]) % 2)[..., None]
        image *= (1 + look.background_checks * sign).astype(np.float32)
    one = np.ones(n, np.float32)
    _paint(image, one * WALL_X, one * FRAME_SIZE, one * 0, one * FRAME_SIZE, WALL)
    for pocket in (0, 1):
        low, high = pocket_y[:, pocket] - POCKET_HALF, pocket_y[:, pocket] + POCKET_HALF
        _paint(image, one * WALL_X, one * POCKET_END_X, low, high, POCKET_COLOURS[pocket_colour[:, pocket]])
    return image


def draw_marks(backdrop: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """A backdrop [N, H, W, 3] with a blue and a pink mark, a block with a rim around it, at marks [N, 2, 2]."""
    image = backdrop.copy()
    for colour in (0, 1):
        x, y = marks[:, colour].T
        _paint(image, x - MARK_HALF, x + MARK_HALF, y - MARK_HALF, y + MARK_HALF, POCKET_COLOURS[colour])
    return image


def draw(backdrop, gripper, block, closed, held, look: Look = Look()) -> np.ndarray:
    """One frame for each scene: gripper, block [N, 2]; closed, held [N] bool -> [N, H, W, 3] uint8."""
    image = backdrop.astype(np.float32, copy=True)
    colour = np.where(held[..., None], BLOCK_HELD, BLOCK_FREE)
    x, y = block[..., 0], block[..., 1]
    _paint(image, x - BLOCK_HALF, x + BLOCK_HALF, y - BLOCK_HALF, y + BLOCK_HALF, colour)
    if look.block_stripes:
        _stripe(image, x, y, colour, look.block_stripes)
    half = np.where(closed, GRIPPER_CLOSED_HALF, GRIPPER_OPEN_HALF)
    colour = np.where(closed[..., None], GRIPPER_CLOSED, GRIPPER_OPEN)
    x, y = gripper[..., 0], gripper[..., 1]
    _paint(image, x - half, x + half, y - half, y + half, colour)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _stripe(image, x, y, colour, darkening: float) -> None:
    for row in range(0, FRAME_SIZE, 2):
        low = np.maximum(y - BLOCK_HALF, row)
        high = np.maximum(np.minimum(y + BLOCK_HALF, row + 1), low)
        _paint(image, x - BLOCK_HALF, x + BLOCK_HALF, low, high, colour * (1 - darkening))


def upscale(frames: np.ndarray, factor: int = 16) -> np.ndarray:
    """Nearest-neighbour enlargement for people: [..., H, W, 3] -> [..., H*factor, W*factor, 3]."""
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


class Sighting(NamedTuple):
    """What one look at a frame finds."""

    gripper: np.ndarray  # [..., 2] centre in pixels; NaN where no gripper shows
    block: np.ndarray  # [..., 2]; NaN where neither a block nor a gripper that could hide it shows
    whole_block: np.ndarray  # [..., 2]; the same, more exact of a held one
    closed: np.ndarray  # [...] bool
    held: np.ndarray  # [...] bool


def see(frames: np.ndarray) -> Sighting:
    """Read gripper and block from pixels [..., H, W, 3] uint8.

    The block is what is warm (red far above blue); held, it is yellow, so its green is near its red. A gripper hides
    all but a thin ring of a block under it: then the block is where the gripper is, and held if the gripper is closed.
    """
    f = frames.astype(np.float32)
    red, green, blue = f[..., 0], f[..., 1], f[..., 2]
    warm = np.clip((red - blue - 50) / 120, 0, 1)
    closed = np.clip((green - np.maximum(red, blue) - 40) / 60, 0, 1)
    opened = np.clip((f.min(-1) - 150) / 60, 0, 1)
    warm_mass, closed_mass, opened_mass = (weight.sum((-1, -2)) for weight in (warm, closed, opened))
    is_closed = closed_mass > SHOWN_MASS
    gripper = np.where(is_closed[..., None], _centroid(closed), _centroid(opened))
    gripper = np.where((is_closed | (opened_mass > SHOWN_MASS))[..., None], gripper, np.nan)
    visible = warm_mass > 2.0
    block = np.where(visible[..., None], _centroid(warm), gripper)
    greenness = (warm * green).sum((-1, -2)) / ((warm * red).sum((-1, -2)) + 1e-6)
    near = np.abs(block - gripper).max(-1) < 1.0
    held = is_closed & near & (~visible | (greenness > 0.67))
    # Of a block in the gripper only a ring is its own colour; together with the gripper it is whole again.
    whole = np.where(held[..., None], _centroid(np.maximum(warm, closed)), block)
    return Sighting(gripper, block, whole, is_closed, held)


def see_marks(frames: np.ndarray) -> np.ndarray:
    """Centres [..., 2, 2] in pixels of the blue and of the pink mark in frames [..., H, W, 3]; NaN where none shows.

    A mark lies left of the wall, and is what block and gripper never are: blue, or pink with more blue than green.
    """
    f = frames.astype(np.float32)
    red, green, blue = f[..., 0], f[..., 1], f[..., 2]
    floor = _PIXEL < WALL_X - 1
    found = []
    for weight in (blue - np.maximum(red, green), np.minimum(red, blue) - green):
        shown = np.clip((weight - 15) / 30, 0, 1) * floor
        seen = shown.sum((-1, -2)) > SHOWN_MASS
        found.append(np.where(seen[..., None], _centroid(shown), np.nan))
    return np.stack(found, -2)


def locate_block(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre [..., 2] in pixels and held [...] bool of the block in frames [..., H, W, 3] uint8, see `see`."""
    seen = see(frames)
    return seen.block, seen.held


def _centroid(weight: np.ndarray) -> np.ndarray:
    """Centre of mass [..., 2] (x, y) of weights [..., H, W]."""
    mass = weight.sum((-1, -2)) + 1e-6
    x = (weight * (_PIXEL + 0.5)).sum((-1, -2)) / mass
    y = (weight * (_PIXEL + 0.5)[:, None]).sum((-1, -2)) / mass
    return np.stack([x, y], -1)


def detect_events(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Events visible in videos [N, T+1, H, W, 3]: `grasp` [N] (ever held), `placement` [N] (ever deep in a pocket).

    They use pixels only, so they read real and imagined videos alike. A grasp must show in two neighbouring frames, a
    placement too unless the video ends with it.
    """
    seen = see(frames)
    inside = seen.block[..., 0] >= SEATED_X - 0.35
    return {"grasp": _two_in_a_row(seen.held), "placement": _two_in_a_row(inside) | inside[:, -1]}


def _two_in_a_row(flags: np.ndarray) -> np.ndarray:
    return (flags[:, 1:] & flags[:, :-1]).any(1)
