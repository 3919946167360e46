"""Logs events as structured lines to the run's `events.jsonl` and to the console.

    emit("worker.lost", "imagination-0 was lost: ...", logging.WARNING, worker="imagination-0", epoch=1)

The standard library's logging carries them, under the logger `wmpo_ray`; without an `EventLog` nothing is printed.
Every step of every group is in the ledger; as an event it is shown with --verbose only.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

FILE_NAME = "events.jsonl"
LOGGER = logging.getLogger("wmpo_ray")
LOGGER.addHandler(logging.NullHandler())  # as a library should: silent unless a handler is added
STYLES = {logging.DEBUG: "dim", logging.INFO: "", logging.WARNING: "yellow", logging.ERROR: "bold red"}


def emit(event: str, text: str, level: int = logging.INFO, **facts: Any) -> None:
    """Log an event. event: `area.what`; text: human-readable; facts: JSON-serializable, above all ids."""
    LOGGER.log(level, text, extra={"event": event, "facts": facts})


class EventFile(logging.Handler):
    """Appends to a file; a kill may cut its last line short."""

    def __init__(self, path: Path):
        super().__init__(logging.INFO)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed with the handler

    def emit(self, record: logging.LogRecord) -> None:
        line = {"time": record.created, "level": record.levelname.lower(), "event": _event(record)}
        try:
            self._file.write(json.dumps({**line, "text": record.getMessage(), **_facts(record)}, default=str) + "\n")
            self._file.flush()
        except OSError:
            pass  # a full disk: the ledger, which is written a moment later, says so and ends the run in order

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:
            pass
        super().close()


class EventConsole(logging.Handler):
    """Coloured text on a terminal; elsewhere, as in a job's log, a line that machines can read as well."""

    def __init__(self, console: Console, level: int):
        super().__init__(level)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if self._console.is_terminal:
            style = "bold" if _event(record).startswith("stage.") else STYLES.get(record.levelno, "")
            self._console.print(Text(record.getMessage(), style))
        else:
            self._console.file.write(as_line(record) + "\n")
            self._console.file.flush()


class Warnings(logging.Handler):
    """Hands warnings and errors on."""

    def __init__(self, take: Callable[[logging.LogRecord], None]):
        super().__init__(logging.WARNING)
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        self._take(record)


@contextmanager
def event_log(
    folder: Path,
    console: Console | None = None,
    level: int = logging.INFO,
    on_warning: Callable[[logging.LogRecord], None] = lambda record: None,
) -> Iterator[None]:
    """Inside the block events go to `<folder>/events.jsonl` and, from `level` on, to the console."""
    handlers: list[logging.Handler] = [EventFile(folder / FILE_NAME), Warnings(on_warning)]
    if console is not None:
        handlers.append(EventConsole(console, level))
    before = LOGGER.level
    LOGGER.setLevel(min(handler.level for handler in handlers))
    for handler in handlers:
        LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.setLevel(before)
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()


def as_line(record: logging.LogRecord) -> str:
    """`2026-11-22T06:04:35Z WARNING worker.lost text="..." worker=imagination-0 epoch=1`."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
    facts = {"text": record.getMessage(), **_facts(record)}
    return " ".join([stamp, record.levelname, _event(record), *(f"{key}={_quoted(v)}" for key, v in facts.items())])


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text) if any(c in text for c in ' "=\n') or not text else text


def _event(record: logging.LogRecord) -> str:
    return getattr(record, "event", record.name)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "facts", {})
