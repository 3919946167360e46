"""Where the main loop logs the metrics of its updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from wmpo_ray.runs.trackers.jsonl import JsonlTracker
from wmpo_ray.runs.trackers.tracker import OPTIMIZE, Trackers


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

    def close(self) -> None:
        self._trackers.close()
