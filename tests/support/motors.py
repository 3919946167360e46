"""A robot's motors that note what they are given, with a clock that tests turn."""

from __future__ import annotations

from wmpo_client.safety import SafetyLimits

WIDE = SafetyLimits((-1.0,), (1.0,), (2.0,), (float("inf"),), watchdog_s=60.0)  # of one dimension


class Motors:
    def __init__(self):
        self.moves, self.num_holds, self.now = [], 0, 0.0

    def apply(self, action) -> None:
        self.moves.append([round(float(each), 6) for each in action])

    def hold(self) -> None:
        self.num_holds += 1

    def clock(self) -> float:
        return self.now
