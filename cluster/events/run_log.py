"""Where the main loop logs the metrics of its updates, and supervised trainings their losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from wmpo_ray.runs.trackers.jsonl import JsonlTracker
from wmpo_ray.runs.trackers.tracker import OPTIMIZE, Trackers

MAX_POINTS = 200  # of one curve


class RunLog(Protocol):
    def metrics(self, update: int, values: dict[str, float]) -> None:
        """Metrics of an update; several calls for one update add up."""

    def restore(self, history: list[dict]) -> set[int]:
        """The run goes on after these updates; returns those whose real success is in the log."""


class FolderLog:
    """The trackers of a run with this folder; `show` hears of every update as well."""

    def __init__(self, folder: Path, trackers: Trackers, show: Callable[[int, dict[str, float]], None]):
        self._folder, self._trackers, self._show = folder, trackers, show

    def metrics(self, update: int, values: dict[str, float]) -> None:
        self._trackers.log(OPTIMIZE, update, values)
        self._show(update, values)

    def restore(self, history: list[dict]) -> set[int]:
        """Bring the log to the checkpoint's state: a kill may have lost its last line, or left later ones."""
        self._trackers.restart(OPTIMIZE, len(history))
        lines = JsonlTracker.read(self._folder)
        there = {line["update"] for line in lines if "policy/loss" in line}
        for line in history:
            if line["update"] not in there:
                self._trackers.log(
                    OPTIMIZE, line["update"], {key: value for key, value in line.items() if key != "update"}
                )
        self._show(len(history), {})
        return {line["update"] for line in lines if "real/success_rate" in line}


class TrainingCurve:
    """Logs the metrics of a supervised training to the run's trackers, evenly thinned out to `MAX_POINTS`."""

    def __init__(self, trackers: Trackers, series: str, num_steps: int):
        self._trackers, self._series, self._num_steps = trackers, series, num_steps
        self._spacing = math.ceil(num_steps / MAX_POINTS)
        self._last = 0  # step that was logged last

    def restart(self, after_step: int) -> None:
        """The training begins, or goes on, after this step: points of later steps will be logged once more."""
        self._trackers.restart(self._series, after_step)
        self._last = after_step

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics as of a step. The last step is always logged."""
        is_due = step // self._spacing > self._last // self._spacing or step == self._num_steps
        if metrics and step > self._last and is_due:
            self._trackers.log(self._series, step, metrics)
            self._last = step
