"""What a gain costs: processor time and real episodes until real success has risen by so much."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.evidence.results import Result

GAINS = (10, 20)  # points


class Cost(NamedTuple):
    """Means over the seeds that got there."""

    gain: int
    reached: int  # seeds
    seeds: int
    core_seconds: float  # with the stages that cells share, in proportion to the updates that were needed
    real_episodes: float


def cost_of(result: Result, gain: int) -> Cost:
    """Costs until real success on the way is `gain` points above that of the base policy."""
    found = [cost for cell in result.cells.values() if (cost := _cost(cell, gain / 100)) is not None]
    seconds, episodes = (float(np.mean(values)) for values in zip(*found, strict=True)) if found else (np.nan, np.nan)
    return Cost(gain, len(found), len(result.cells), seconds, episodes)


def _cost(cell: dict[str, Any], gain: float) -> tuple[float, float] | None:
    """(processor seconds, real episodes) of a cell; None if it never gained so much."""
    update = first_update(cell["curves"].get("real/success_rate", []), gain)
    if update is None:
        return None
    share = update / max(cell["num_updates"], 1)
    online = sum(value for number, value in cell["curves"].get("rollout/trajectories", []) if number <= np.ceil(update))
    collected = 0 if online else cell["cell"]["budget"]
    return cell["shared_core_seconds"] + share * cell["core_seconds"], online + collected


def first_update(curve: Sequence[Sequence[float]], gain: float) -> float | None:
    """Where a curve of (update, success) first lies `gain` above its beginning, between measurements on a line."""
    for (before, low), (after, high) in itertools.pairwise(curve):
        wanted = curve[0][1] + gain
        if high >= wanted:
            return before + (after - before) * (wanted - low) / (high - low)
    return None
