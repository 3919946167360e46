"""Where the main loop tells the figures of its updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from wmpo_ray.runs.metrics_log import MetricsLog


class RunLog(Protocol):
    def metrics(self, update: int, values: dict[str, float]) -> None:
        """Figures of an update; several calls for one update add up."""

    def restore(self, history: list[dict]) -> set[int]:
        """The run goes on after these updates; returns those whose real success is in the log."""


class FolderLog:
    """`metrics.jsonl` and `tensorboard` in a run's folder; `show` is told of every update as well."""

    def __init__(self, folder: Path, show: Callable[[int, dict[str, float]], None]):
        self._log, self._show = MetricsLog(folder), show

    def metrics(self, update: int, values: dict[str, float]) -> None:
        self._log.log(update, values)
        self._show(update, values)

    def restore(self, history: list[dict]) -> set[int]:
        """Bring the file to the checkpoint's state: a kill may have lost its last line, or left later ones."""
        log = self._log
        log.truncate(len(history))
        lines = MetricsLog.read(log.path.parent)
        there = {line["update"] for line in lines if "policy/loss" in line}
        for line in history:
            if line["update"] not in there:
                log.log(line["update"], {key: value for key, value in line.items() if key != "update"})
        self._show(len(history), {})
        return {line["update"] for line in lines if "real/success_rate" in line}

    def close(self) -> None:
        self._log.close()
