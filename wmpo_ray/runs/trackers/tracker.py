"""Sends the metrics of a run to `metrics.jsonl`, the authoritative record, and to any number of other trackers."""

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
    """Prefix of a metric's name if all series share one namespace: "policy/loss" is GRPO's."""
    return "" if series == OPTIMIZE else f"training/{series}/"


class Tracker(Protocol):
    """Takes finite metrics as they come; one process writes, the driver."""

    name: str

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        """Record metrics of a step. Several calls for one step add up."""

    def restart(self, series: str, after_step: int) -> None:
        """The series resumes after `after_step`: later steps will be logged again."""

    def close(self) -> None:
        """Nothing more will be logged."""


class Trackers:
    """Logs every metric to `metrics.jsonl` first and then to the other trackers.

    What the account raises ends the run. Another tracker that fails is reported once and switched off: a server that is
    away must not cost a training.
    """

    def __init__(self, account: Tracker, others: Sequence[Tracker] = (), warn: Callable[[str], None] = logging.warning):
        self._account, self._others, self._warn = account, list(others), warn

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of a step. Raises UserError on a full disk."""
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
            except UserError:  # such as a full disk, which would also fail the next checkpoint
                raise
            except Exception as error:  # noqa: BLE001  a third-party client may raise anything
                self._others.remove(tracker)
                self._warn(f"tracker {tracker.name} failed and is switched off: {type(error).__name__}: {error}")
