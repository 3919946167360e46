"""The metrics of a run: one JSON line per update in `metrics.jsonl`, and the same as TensorBoard events."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write, explain_full_disk, json_clean, write_all
from wmpo_ray.core.untrusted import parse_json, read_lines

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Appends to `<folder>/metrics.jsonl` and `<folder>/tensorboard`; one writer at a time."""

    def __init__(self, folder: Path):
        self.path = folder / FILE_NAME
        self._events_folder = folder / "tensorboard"
        self._events: SummaryWriter | None = None
        self._purge_step: int | None = None
        if self.path.exists() and not _ends_whole(self.path):
            # A line that a kill cut short: the next one must not be appended to it.
            _write(self.path, self.read(folder))

    def log(self, update: int, values: dict[str, float]) -> None:
        """Record the metrics of one update, on the disk when this returns; NaN becomes null.

        Raises `ValueError` if `values` holds the key `update`, `UserError` on a full disk.
        """
        if "update" in values:
            raise ValueError("the metric name 'update' is taken by the number of the update; rename the metric")
        clean = json_clean(values)
        with explain_full_disk(self.path):
            with open(self.path, "ab", buffering=0) as file:
                write_all(file.fileno(), _line({"update": update, **clean}))
            self._log_events(update, {name: value for name, value in clean.items() if value is not None})

    def truncate(self, after_update: int) -> None:
        """Drop the metrics of updates later than `after_update`: a resumed run will write them again."""
        self.close()
        if self.path.exists():
            _write(self.path, [row for row in self.read(self.path.parent) if row["update"] <= after_update])
        self._purge_step = after_update + 1

    def close(self) -> None:
        """Let go of the event file. Raises `UserError` if its last events did not fit on the disk."""
        events, self._events = self._events, None
        if events is not None:
            with explain_full_disk(self.path):
                events.close()

    @staticmethod
    def read(folder: Path) -> list[dict]:
        """The lines of `<folder>/metrics.jsonl` in order, none where there is no such file.

        A half-written last line is left out. Raises `UserError` for any other line that is no metrics line.
        """
        path = folder / FILE_NAME
        if not path.exists():
            return []
        rows = []
        for number, line in enumerate(read_lines(path), 1):
            row = _parse(line)
            if row is not None:
                rows.append(row)
            elif line.endswith(b"\n"):
                raise UserError(f"{path}, line {number}: not a metrics line: {line[:60]!r}; delete the line")
        return rows

    def _log_events(self, update: int, values: dict[str, float]) -> None:
        if self._events is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._events = SummaryWriter(str(self._events_folder), purge_step=self._purge_step)
        for name, value in values.items():
            self._events.add_scalar(name, value, update)
        self._events.flush()


def _parse(line: bytes) -> dict | None:
    try:
        row = parse_json(line, FILE_NAME)
    except UserError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("update"), int) else None


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read() == b"\n"


def _line(row: dict) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _write(path: Path, rows: list[dict]) -> None:
    atomic_write(path, b"".join(_line(row) for row in rows))
