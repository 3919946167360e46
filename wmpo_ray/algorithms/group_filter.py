"""Dynamic sampling: which groups carry a learning signal (paper section 3.3)."""

from __future__ import annotations

import numpy as np

from wmpo_ray.config.run import FilterConfig
from wmpo_ray.core.types import Verdict


def judge_group(success: np.ndarray, version: int, learner_version: int, config: FilterConfig) -> Verdict:
    """Judge one group from its outcomes [G] and the age of the weights that made it.

    A group whose outcomes are all equal has no advantage; one outside the configured success rates is too easy or too
    hard to be worth a slot.
    """
    if learner_version - version > config.max_staleness:
        return Verdict.STALE
    if success.all() or not success.any():
        return Verdict.UNIFORM
    if not config.min_mean <= success.mean() <= config.max_mean:
        return Verdict.OUTSIDE
    return Verdict.ADMIT
