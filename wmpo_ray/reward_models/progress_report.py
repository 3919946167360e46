"""How far episodes have come, as a progress head sees it: whether it grows with time, and how failures differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from wmpo_ray.core.types import Episodes
from wmpo_ray.statistics.agreement import rank_correlation

NUM_POINTS = 11  # of the curves, from the start of an episode to its end


@runtime_checkable
class KnowsProgress(Protocol):
    """A reward model that can say of each frame how far it is; whether it has learned to is in `knows_progress`."""

    knows_progress: bool

    def progress(self, videos: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """videos [M, T+1, H, W, 3] -> [M, T+1] in 0..1."""


def progress_report(model: KnowsProgress, parts: Iterable[Episodes]) -> dict[str, Any]:
    """The mean over successes of the rank correlation of progress and time, and mean curves of both outcomes.

    The former is the value-order correlation of Ma et al. 2024 (GVL, arXiv 2411.04549): 1 where each frame is further
    than the one before. The curves have `NUM_POINTS` points at equal shares of each episode.
    """
    orders: list[float] = []
    curves: dict[str, list[np.ndarray]] = {"success": [], "failure": []}
    for part in parts:
        found = model.progress(np.asarray(part.frames), part.instructions)
        for values, length, success in zip(found, part.lengths, part.success, strict=True):
            of_episode = values[: int(length) + 1]
            at = np.linspace(0, int(length), NUM_POINTS)
            curves["success" if success else "failure"].append(np.interp(at, np.arange(len(of_episode)), of_episode))
            order = rank_correlation(of_episode, np.arange(len(of_episode))) if success else None
            orders += [] if order is None else [order]
    return {
        "order_correlation": float(np.mean(orders)) if orders else None,
        **{name: np.mean(rows, 0).tolist() if rows else [] for name, rows in curves.items()},
    }
