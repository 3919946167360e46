"""A taxonomy of failures: one mode for each episode, and real against imagined ones of the same starts and actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.statistics.episode_curves import Estimate
from wmpo_ray.statistics.paired import Pairs, newcombe_paired_interval

SUCCESS, TIMEOUT, FAILURE = "success", "timeout", "failure"  # FAILURE: of a kind that nobody can tell


def modes_of(success: np.ndarray, failures: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """The mode [M] of each episode, from success [M] and failures name -> [M] bool; None: they are not known.

    An episode may show several failures: the last in the order of the environment counts, which is that of the task (in the
    embedded one a missed grasp, a jam, a drop, the wrong pocket). One that shows none has run out of time.
    """
    if failures is None:
        return np.where(success, SUCCESS, FAILURE).astype(object)
    modes = np.where(success, SUCCESS, TIMEOUT).astype(object)
    for name, shown in failures.items():
        modes[~np.asarray(success, bool) & shown] = name
    return modes


def order_of(names: Sequence[str], modes: Sequence[np.ndarray]) -> list[str]:
    """Success, the environment's failures, then those without a name; the last only where there are any."""
    seen = {mode for found in modes for mode in found}
    return [SUCCESS, *names, *(mode for mode in (TIMEOUT, FAILURE) if mode in seen)]


def compare_modes(real: np.ndarray, shown: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Shares and confusion tables of modes [M]. shown: source of the videos -> modes; names: the environment's failures.

    `confusion` of a source has a row for each real mode and a column for each mode of `modes`, both in that order.
    `differences` are shares of a source less the real ones, of the same episodes.
    """
    modes = order_of(names, [real, *shown.values()])
    sources = {"real": real, **shown}
    return {
        "modes": modes,
        "shares": {source: {mode: share(found == mode) for mode in modes} for source, found in sources.items()},
        "differences": {
            source: {mode: _difference(real == mode, found == mode) for mode in modes}
            for source, found in shown.items()
        },
        "agreement": {source: share(found == real) for source, found in shown.items()},
        "confusion": {
            source: [[int(((real == row) & (found == column)).sum()) for column in modes] for row in modes]
            for source, found in shown.items()
        },
    }


def share(flags: np.ndarray) -> dict[str, float]:
    """The share of flags [M] that are set, with Wilson's 95% interval."""
    low, high = wilson_interval(int(flags.sum()), len(flags))
    return Estimate(float(flags.mean()), low, high)._asdict()


def _difference(real: np.ndarray, found: np.ndarray) -> dict[str, float]:
    pairs = Pairs.of(real, found)
    return Estimate(pairs.difference, *newcombe_paired_interval(pairs))._asdict()
