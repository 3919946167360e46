"""In which order start states of several tasks are taken, so that each task has its share of any number of groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from wmpo_ray.algorithms.start_signal import PRIOR


def task_signal(successes: float, failures: float, group_size: int) -> float:
    """Probability 1 - p^G - (1 - p)^G that the members of a group differ, at the success rate p of all groups of a task.

    p is the mean of Beta(1 + successes, 1 + failures): of a task of which nothing is known, 1/2, so that one which is not
    asked for a while is asked again.
    """
    p = (PRIOR[0] + successes) / (sum(PRIOR) + successes + failures)
    same = fails = 1.0
    for _ in range(group_size):  # products, which every processor rounds the same
        same, fails = same * p, fails * (1 - p)
    return 1 - same - fails


def signal_shares(
    shares: Mapping[str, float], tasks: Sequence[str], outcomes: Iterable[tuple[int, int, int]], group_size: int
) -> dict[str, float]:
    """The shares of tasks times their signal. tasks: of each start; outcomes: (start, successes, failures) of groups."""
    found = {task: [0, 0] for task in shares}
    for start, succeeded, failed in outcomes:
        if tasks[start] in found:
            found[tasks[start]][0] += succeeded
            found[tasks[start]][1] += failed
    return {task: share * task_signal(found[task][0], found[task][1], group_size) for task, share in shares.items()}


def by_task(order: np.ndarray, tasks: Sequence[str], shares: Mapping[str, float]) -> np.ndarray:
    """An order [n] of starts in whose first k every task has its share of k, give or take one.

    Each task's starts come as they do in `order` [n], and begin again where its share is more than it has.
    """
    waiting = {task: [int(start) for start in order if tasks[start] == task] for task in shares}
    total = sum(share for task, share in shares.items() if waiting[task])
    credit = {task: 0.0 for task, starts in waiting.items() if starts}
    taken, chosen = dict.fromkeys(credit, 0), []
    for _ in range(len(order)):
        for task in credit:
            credit[task] += shares[task] / total
        task = max(credit, key=credit.__getitem__)  # of equal ones the first
        credit[task] -= 1
        chosen.append(waiting[task][taken[task] % len(waiting[task])])
        taken[task] += 1
    return np.array(chosen, np.int64)
