"""The order in which an update's groups begin from the start states: a pure function of the run's seed and the ledger."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cluster.loop.ledger import Ledger, State
from wmpo_ray.algorithms.keep_rate import WINDOW
from wmpo_ray.algorithms.start_signal import by_signal
from wmpo_ray.config.run import Config
from wmpo_ray.core.seeding import seed_for


class StartOrder:
    """`num_starts`: how many there are; every order [num_starts] contains each of them once."""

    def __init__(self, config: Config, ledger: Ledger, num_starts: int):
        self.config, self.ledger, self.num_starts = config, ledger, num_starts
        self._orders: dict[int, np.ndarray] = {}

    def of(self, update: int, first_unknown: int) -> np.ndarray:
        """For an update whose weights came of the updates before `first_unknown`: all of those are trained."""
        if update not in self._orders:
            seed = seed_for(self.config.seed, "starts", update)
            order = np.random.default_rng(seed).permutation(self.num_starts)
            if self.config.rollout.start_order == "signal":
                order = by_signal(order, self._outcomes(first_unknown), self.config.rollout.group_size)
            self._orders = {u: o for u, o in self._orders.items() if u >= first_unknown} | {update: order}
        return self._orders[update]

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
