"""Small episodes whose outcome a colour shows, for reward models."""

from __future__ import annotations

import numpy as np

from wmpo_ray.core.types import Episodes

TEXTS = ("blue", "pink")


def make_episodes(count: int = 24, steps: int = 8) -> Episodes:
    """Success = the last frames turn the colour that the instruction names; half of them end in success."""
    rng = np.random.default_rng(0)
    frames = rng.integers(30, 60, (count, steps + 1, 8, 8, 3)).astype(np.uint8)
    success = np.arange(count) % 2 == 0
    texts = tuple(TEXTS[(i // 2) % 2] for i in range(count))
    for i in np.flatnonzero(success):
        frames[i, -2:, :, :, 2 if texts[i] == "blue" else 0] = 250
    zeros = np.zeros((count, steps, 3), np.float32)
    return Episodes(frames, zeros, np.full(count, steps), success, texts, np.arange(count))
