"""Writes `status.json`, the current state of a run. Written by a thread, so that it is never older than
a second while the process lives, whatever the stage is doing."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from cluster.host.preemption import is_leaving

FILE_NAME = "status.json"
EVERY_S = 1.0
NUM_FAULTS = 5


class Status:
    """A set of facts; `update` changes some of them."""

    def __init__(self, folder: Path, **facts: Any):
        self._path = folder / FILE_NAME
        self._facts: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "state": "running", **facts}
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="status", daemon=True)
        self._thread.start()

    def update(self, **facts: Any) -> None:
        with self._lock:
            self._facts |= facts

    def progress(self, done: int, total: int, metrics: dict[str, float]) -> None:
        self.update(progress={"done": done, "total": total, "metrics": metrics})

    def fault(self, record: logging.LogRecord) -> None:
        """A warning or an error: the newest few are shown."""
        fault = {"time": record.created, "event": getattr(record, "event", ""), "text": record.getMessage()}
        with self._lock:
            self._facts["faults"] = [*self._facts.get("faults", []), fault][-NUM_FAULTS:]

    def begin_stage(self, stage: str, done: list[str]) -> None:
        """Drop the status of the previous stage."""
        with self._lock:
            kept = ("pid", "host", "job", "state", "stages", "faults", "dashboard", "metrics")
            self._facts = {key: self._facts[key] for key in kept if key in self._facts}
            self._facts |= {"stage": stage, "stages_done": done}

    def close(self, state: str) -> None:
        """The last word: `done`, `failed`, `preempted` or `stopped`."""
        self.update(state=state)
        self._is_over.set()
        self._thread.join(timeout=2 * EVERY_S)
        self._write()

    def _write_on(self) -> None:
        while not self._is_over.is_set():
            self._write()
            self._is_over.wait(EVERY_S)

    def _write(self) -> None:
        with self._lock:
            # There may be no time left for `close`.
            state = {"state": "preempted"} if is_leaving() else {}
            text = json.dumps({"time": time.time(), **self._facts, **state}, default=float)
        partial = self._path.with_name(f".{FILE_NAME}.partial")
        try:
            # Not fsynced: the status is worthless after a crash of the machine.
            partial.write_text(text)
            partial.replace(self._path)
        except OSError:
            pass  # the stage itself reports a full disk
