"""Episodes that look like a simulator's: a still background with grain, and things that move over it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from wmpo_ray.core.types import Episodes
from wmpo_ray.data.episodes import RaggedFrames

NUM_THINGS, RADIUS, GRAIN, DIMS = 3, 6, 6, 7


def scene(seed: int, steps: int, size: int) -> np.ndarray:
    """A video [steps + 1, size, size, 3] uint8."""
    chance = np.random.default_rng(seed)
    coarse = Image.fromarray(chance.integers(60, 200, (8, 8, 3), np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    still = np.asarray(coarse, np.int16) + chance.integers(-GRAIN, GRAIN + 1, (size, size, 3))
    video = np.repeat(still.clip(0, 255).astype(np.uint8)[None], steps + 1, axis=0)
    y, x = np.mgrid[:size, :size]
    for _ in range(NUM_THINGS):
        place, speed = chance.uniform(0.2, 0.8, 2) * size, chance.uniform(-0.01, 0.01, 2) * size
        colour = chance.integers(0, 256, 3)
        for t, frame in enumerate(video):
            at = (place + t * speed).clip(RADIUS, size - RADIUS)
            frame[(y - at[0]) ** 2 + (x - at[1]) ** 2 < RADIUS**2] = colour
    return video


def scene_episodes(num: int, steps: int, size: int, first_seed: int = 0) -> Episodes:
    """Episodes that all last `steps`; every other one is a success."""
    chance = np.random.default_rng(first_seed)
    return Episodes(
        RaggedFrames([scene(first_seed + i, steps, size) for i in range(num)], steps, (size, size, 3)),
        chance.uniform(-1, 1, (num, steps, DIMS)).astype(np.float32),
        np.full(num, steps),
        np.arange(num) % 2 == 0,
        ("push the block",) * num,
        np.arange(num),
    )
