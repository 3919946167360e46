"""Seeded start states, split so that nothing is ever evaluated where it was trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from wmpo_ray.core.observations import StartState

Split = Literal["demos", "collect", "gate", "on_the_way", "evaluate"]

TRAINING_LIMIT = 1_000_000_000  # seeds below are for training, from here on held out
SPAN = 100_000  # most start states of one split in one run
_FIRST = {
    "demos": 0,
    "collect": SPAN,
    "gate": TRAINING_LIMIT,
    "on_the_way": 2 * TRAINING_LIMIT,
    "evaluate": 3 * TRAINING_LIMIT,
}


def start_seeds(split: Split, count: int, run_seed: int) -> np.ndarray:
    """Seeds [count] int64 of start states. Runs train on states of their own; all are evaluated on the same ones."""
    if count > SPAN:
        raise ValueError(f"{count} start states were asked for; a split holds at most {SPAN}")
    own = 0 if split in ("evaluate", "on_the_way") else 2 * SPAN * (run_seed % 4000)
    return _FIRST[split] + own + np.arange(count, dtype=np.int64)


def seeded_starts(seeds: Iterable[int] | np.ndarray) -> list[StartState]:
    """Starts that an environment rebuilds from seeds; they have not been rendered, so they have no frames."""
    return [StartState(np.zeros((0, 0, 0, 3), np.uint8), "", int(seed)) for seed in seeds]
