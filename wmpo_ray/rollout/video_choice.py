"""Which episodes of an evaluation are kept as videos."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NUM_VIDEOS = 4  # of successes, and as many of failures
NUM_RECOVERIES = 2  # further successes after a failed attempt


class VideoChoice:
    """Which episodes of an evaluation are shown: the first `num` successes and failures, and some recoveries.

    It goes through the episodes in the order of their starts, so what is chosen depends on outcomes alone.
    """

    def __init__(self, num: int = NUM_VIDEOS):
        self._missing, self._recoveries = {True: num, False: num}, NUM_RECOVERIES

    @property
    def is_complete(self) -> bool:
        """Whether no further batch needs its frames."""
        return not any(self._missing.values())

    def take(self, success: np.ndarray, failures: Mapping[str, np.ndarray]) -> np.ndarray:
        """The rows of the next batch that are shown; success and each failure [M] bool."""
        if self.is_complete:
            return np.zeros(0, np.int64)
        chosen = [np.flatnonzero(success == wanted)[:missing] for wanted, missing in self._missing.items()]
        for wanted, rows in zip(self._missing, chosen, strict=True):
            self._missing[wanted] -= len(rows)
        more = np.setdiff1d(np.flatnonzero(has_recovered(success, failures)), chosen[0])[: self._recoveries]
        self._recoveries -= len(more)
        return np.concatenate([chosen[0], more, chosen[1]])


def video_candidates(success: np.ndarray, failures: Mapping[str, np.ndarray], num: int = NUM_VIDEOS) -> np.ndarray:
    """Rows of a batch among which `VideoChoice.take` chooses, whatever the batches before it were."""
    recovered = np.flatnonzero(has_recovered(success, failures))[: num + NUM_RECOVERIES]
    return np.unique(np.concatenate([np.flatnonzero(success)[:num], np.flatnonzero(~success)[:num], recovered]))


def has_recovered(success: np.ndarray, failures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which episodes [M] succeed after a failed attempt; none where the environment reports no failures."""
    return success & np.any([np.zeros(len(success), bool), *failures.values()], 0)
