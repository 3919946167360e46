"""How likely a start state is to give a group with mixed outcomes, from what came of it before.

A group teaches something only if some of its members succeed and others do not. Starts that were always or never solved
lately seldom give one; asked later, they are asked less often.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

PRIOR = (1.0, 1.0)  # of the Beta distribution of a start's success rate: any is as likely


def mixed_probability(successes: np.ndarray, failures: np.ndarray, group_size: int) -> np.ndarray:
    """Probability [n] that G new members differ, for starts with these outcomes [n] so far.

    1 - E[p^G] - E[(1 - p)^G] with p ~ Beta(1 + successes, 1 + failures) (beta-binomial distribution).
    """
    alpha, beta = PRIOR[0] + np.asarray(successes, float), PRIOR[1] + np.asarray(failures, float)
    return 1 - _all_alike(alpha, beta, group_size) - _all_alike(beta, alpha, group_size)


def by_signal(shuffled: np.ndarray, outcomes: Iterable[tuple[int, int, int]], group_size: int) -> np.ndarray:
    """The starts [n] in order of that probability, the most likely first; equal ones stay as they are in `shuffled`.

    outcomes: (start, successes, failures) of groups.
    """
    successes, failures = np.zeros(len(shuffled)), np.zeros(len(shuffled))
    for start, succeeded, failed in outcomes:
        successes[start] += succeeded
        failures[start] += failed
    signal = mixed_probability(successes, failures, group_size)
    return shuffled[np.argsort(-signal[shuffled], kind="stable")]


def _all_alike(alpha: np.ndarray, beta: np.ndarray, group_size: int) -> np.ndarray:
    """E[p^G] for p ~ Beta(alpha, beta): a product, which every processor rounds the same."""
    found = np.ones_like(alpha)
    for k in range(group_size):
        found *= (alpha + k) / (alpha + beta + k)
    return found
