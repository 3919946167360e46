"""The order in which an update's groups begin from the start states: a pure function of the run's seed and the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cluster.loop.ledger import Ledger, State
from wmpo_ray.algorithms.keep_rate import WINDOW
from wmpo_ray.algorithms.start_signal import by_signal
from wmpo_ray.algorithms.task_order import by_task, signal_shares
from wmpo_ray.config.run import Config
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.environments.task_of_start import tasks_of


class StartOrder:
    """Every order [n] of n starts contains each of them once; of several tasks, each task's as often as its share asks."""

    def __init__(self, config: Config, ledger: Ledger, starts: Sequence[StartState]):
        self.config, self.ledger = config, ledger
        self.tasks, several = [start.task for start in starts], tasks_of(config.environment)
        # Of the tasks that there are starts of: one may have been left out.
        self.shares = several.shares_of(self.tasks) if several else {}
        self._orders: dict[int, np.ndarray] = {}

    def of(self, update: int, first_unknown: int) -> np.ndarray:
        """For an update whose weights came of the updates before `first_unknown`: all of those are trained."""
        if update not in self._orders:
            seed = seed_for(self.config.seed, "starts", update)
            order = np.random.default_rng(seed).permutation(len(self.tasks))
            if self.config.rollout.start_order == "signal":
                order = by_signal(order, self._outcomes(first_unknown), self.config.rollout.group_size)
            if self.shares:
                order = by_task(order, self.tasks, self._shares(first_unknown))
            self._orders = {u: o for u, o in self._orders.items() if u >= first_unknown} | {update: order}
        return self._orders[update]

    def _shares(self, first_unknown: int) -> dict[str, float]:
        if self.config.rollout.task_draw == "weight":
            return self.shares
        outcomes, size = self._outcomes(first_unknown), self.config.rollout.group_size
        return signal_shares(self.shares, self.tasks, outcomes, size)

    def _outcomes(self, before: int) -> Iterator[tuple[int, int, int]]:
        """(start, successes, failures) of the groups up to the last of each batch: which others there are is chance."""
        records = {key: record for key, record in self.ledger.records.items() if before - WINDOW <= key[0] < before}
        last: dict[int, int] = {}
        for (update, attempt), record in records.items():
            if record.state is State.TRAINED:
                last[update] = max(attempt, last.get(update, 0))
        for (update, attempt), record in records.items():
            facts = record.facts
            if attempt <= last.get(update, -1) and "success" in facts:
                known = facts.get("known", [1] * len(facts["success"]))
                succeeded = sum(s for s, is_known in zip(facts["success"], known, strict=True) if is_known)
                yield facts["start"], succeeded, sum(known) - succeeded
