"""Where the metrics of a run go: `metrics.jsonl`, which is the account, and any number of other trackers beside it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from wmpo_ray.core.errors import UserError

OPTIMIZE = "optimize"  # the series of policy updates; the other series are those of supervised trainings


def step_name(series: str) -> str:
    """What the steps of a series count."""
    return "update" if series == OPTIMIZE else "step"


def prefix(series: str) -> str:
    """What stands before a metric's name where all series share one space of names: "policy/loss" is GRPO's."""
    return "" if series == OPTIMIZE else f"training/{series}/"


class Tracker(Protocol):
    """Takes finite metrics as they come; one process writes, the driver."""

    name: str

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        """Record metrics of a step. Several calls for one step add up."""

    def restart(self, series: str, after_step: int) -> None:
        """The series goes on behind `after_step`: later steps will be logged once more."""

    def close(self) -> None:
        """Nothing more will be logged."""


class Trackers:
    """Hands every metric to the account first and then to the others.

    What the account raises ends the run. Another tracker that fails is reported once and switched off: a server that is
    away must not cost a training.
    """

    def __init__(self, account: Tracker, others: Sequence[Tracker] = (), warn: Callable[[str], None] = logging.warning):
        self._account, self._others, self._warn = account, list(others), warn

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        """Record metrics of a step. Raises what the account raises: UserError on a full disk."""
        self._account.log(series, step, values)
        finite = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
        self._each("log", series, step, finite)

    def restart(self, series: str, after_step: int) -> None:
        self._account.restart(series, after_step)
        self._each("restart", series, after_step)

    def close(self) -> None:
        self._each("close")
        self._account.close()

    def _each(self, method: str, *args: object) -> None:
        for tracker in list(self._others):
            try:
                getattr(tracker, method)(*args)
            except UserError:  # such as a full disk, which the next checkpoint would meet as well
                raise
            except Exception as error:  # noqa: BLE001  what a third party's client raises is not ours to know
                self._others.remove(tracker)
                self._warn(f"tracker {tracker.name} failed and is switched off: {type(error).__name__}: {error}")
