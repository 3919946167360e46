"""Where agent and T of PushT are, read from pixels alone."""

from __future__ import annotations

import numpy as np

from wmpo_ray.core.interfaces import AGENT
from wmpo_ray.environments.pusht.tee import TEE_AREA

SHOWN = 0.3  # of the pixels that a thing covers; what shows less is not there
GREENNESS = 94.0  # of light green, above red and blue
AGENT_UNITS, TEE_UNITS = np.pi * 15.0**2, TEE_AREA  # areas on the board of 512x512 units


def locate(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Centres of agent and T in frames [..., S, S, 3] uint8 -> [..., 2] (x, y) in pixels; NaN where it does not show.

    The agent is blue. The T is darker than the board and its green image, and not as blue as the agent; where the agent
    hides a part of it, the rest is all that counts.
    """
    f = frames.astype(np.float32)
    red, green, blue = f[..., 0], f[..., 1], f[..., 2]
    blueness = np.clip((blue - red - 45) / 120, 0, 1)
    darkness = np.clip(((255 - green) - 0.73 * (blue - red) - 25) / 45, 0, 1)
    slate = np.minimum(darkness, np.clip((blue - red) / 25, 0, 1))  # the walls are as dark and have no colour
    pixel = (512.0 / frames.shape[-2]) ** 2
    return {
        AGENT: _centre(blueness, SHOWN * AGENT_UNITS / pixel),
        "tee": _centre(slate, SHOWN * TEE_UNITS / pixel),
    }


def green_left(frames: np.ndarray) -> np.ndarray:
    """How much of the green T shows in frames [..., S, S, 3] uint8, in pixels [...]: what neither T nor agent covers."""
    f = frames.astype(np.float32)
    red, green, blue = f[..., 0], f[..., 1], f[..., 2]
    return np.clip(np.minimum(green - red, green - blue) / GREENNESS, 0, 1).sum((-1, -2))


def _centre(weight: np.ndarray, enough: float) -> np.ndarray:
    """Centre of mass [..., 2] (x, y) of weights [..., S, S]; NaN where they are not `enough` in sum."""
    place, mass = np.arange(weight.shape[-1]) + 0.5, weight.sum((-1, -2))
    sums = np.stack([(weight * place).sum((-1, -2)), (weight * place[:, None]).sum((-1, -2))], -1)
    return np.where((mass >= enough)[..., None], sums / np.maximum(mass, 1e-6)[..., None], np.nan)
