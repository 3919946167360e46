"""Replays given actions in a world: to verify successes, compare labels with reality, and measure fidelity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from wmpo_ray.core.interfaces import FramesMode, World
from wmpo_ray.core.observations import Observation, Rollout, StartState
from wmpo_ray.rollout.act import Move, SeedsOf, run


def replay(
    world: World,
    starts: Sequence[StartState],
    actions: np.ndarray,
    seeds_of: SeedsOf,
    *,
    frames: FramesMode = "all",
    progress: Callable[[], None] = lambda: None,
) -> Rollout:
    """Execute actions [M, T, D], open loop, without observations or a record.

    Raises ValueError unless T is a multiple of the chunk length.
    """
    size = world.chunk_length
    if actions.shape[1] == 0 or actions.shape[1] % size:
        raise ValueError(
            f"{actions.shape[1]} actions are no whole number of chunks of {size}; make environment.horizon a multiple "
            "of rollout.chunk_length"
        )

    def follow(state: Any, _observation: Observation | None, chunk: int) -> Move:
        part = np.ascontiguousarray(actions[:, chunk * size : (chunk + 1) * size])
        state, transition = world.step_chunk(state, torch.from_numpy(part), seeds_of("step", chunk), frames)
        return Move(state, transition, part)

    return run(world, starts, actions.shape[1] // size, follow, progress=progress)
