"""Logs what every worker did for an update and when: `traces/update-000003.jsonl`, one line per call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.runtimes.runtime import Work
from cluster.workers.actor_pool import Worker

FOLDER = "traces"


class TraceLog:
    """Keeps the newest `keep` updates, none if it is 0. Lines wait in memory until `flush`."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self._lines: dict[int, list[str]] = {}

    def call(self, worker: Worker, call: str, update: int, groups: Sequence[tuple[int, int]], version: int, work: Work):
        if not self.keep:
            return
        process = worker.process
        line: dict[str, Any] = {
            "worker": worker.name,
            "role": worker.role,
            "node": process.node if process else "",
            "pid": process.pid if process else 0,
            "call": call,
            "update": update,
            "groups": [list(group) for group in groups],
            "version": version,
            "start": round(work.start, 6),
            "seconds": round(work.seconds, 6),
            "spans": [[span.name, round(span.start, 6), round(span.seconds, 6)] for span in work.recording.spans],
        }
        self._lines.setdefault(update, []).append(json.dumps(line, separators=(",", ":")))

    def flush(self) -> None:
        """Write the lines to disk; they are dropped if the disk is full, since nothing depends on a trace."""
        lines, self._lines = self._lines, {}
        try:
            for update, calls in lines.items():
                self.folder.mkdir(exist_ok=True)
                with open(self._path(update), "a") as file:
                    file.write("".join(f"{line}\n" for line in calls))
            if lines:
                self._forget()
        except OSError:
            pass

    def restore(self, num_updates: int) -> None:
        """The run resumes after `num_updates`: delete the traces of later updates."""
        for path in self.folder.glob("update-*.jsonl"):
            if path >= self._path(num_updates):
                path.unlink()

    def _forget(self) -> None:
        for path in sorted(self.folder.glob("update-*.jsonl"))[: -self.keep]:
            path.unlink()

    def _path(self, update: int) -> Path:
        return self.folder / f"update-{update:06d}.jsonl"
