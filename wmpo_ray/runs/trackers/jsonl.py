"""JSON lines in the run's folder: what reports, comparisons and a resumed run read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write, explain_full_disk, json_clean, write_all
from wmpo_ray.core.untrusted import parse_json, read_lines
from wmpo_ray.runs.trackers.tracker import OPTIMIZE, step_name

FILE_NAME = "metrics.jsonl"
CURVES = "curves"  # folder of the supervised trainings' series


def series_path(folder: Path, series: str = OPTIMIZE) -> Path:
    """`metrics.jsonl` for policy updates, `curves/NAME.jsonl` for a supervised training."""
    return folder / FILE_NAME if series == OPTIMIZE else folder / CURVES / f"{series}.jsonl"


class JsonlTracker:
    """One line for each call of `log`, on the disk when it returns; NaN becomes null."""

    name = "jsonl"

    def __init__(self, folder: Path):
        self.folder = folder
        self._whole: set[str] = set()  # series whose file ends with a whole line

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        """Raises `ValueError` if `values` holds the name of the step, `UserError` on a full disk."""
        key = step_name(series)
        if key in values:
            raise ValueError(f"the metric name {key!r} is taken by the number of the {key}; rename the metric")
        path = series_path(self.folder, series)
        path.parent.mkdir(exist_ok=True)
        self._mend(path, series)
        with explain_full_disk(path), open(path, "ab", buffering=0) as file:
            write_all(file.fileno(), _line({key: step, **json_clean(dict(values))}))

    def restart(self, series: str, after_step: int) -> None:
        """Drop the lines of later steps: a resumed run writes them again."""
        path, key = series_path(self.folder, series), step_name(series)
        if path.exists():
            _write(path, [row for row in self.read(self.folder, series) if row[key] <= after_step])

    def close(self) -> None:
        """Every line is on the disk already."""

    @staticmethod
    def read(folder: Path, series: str = OPTIMIZE) -> list[dict]:
        """The lines of a series in order, none where there is no such file.

        A half-written last line is left out. Raises `UserError` for any other line that is no metrics line.
        """
        path, key = series_path(folder, series), step_name(series)
        if not path.exists():
            return []
        rows = []
        for number, line in enumerate(read_lines(path), 1):
            row = _parse(line, key)
            if row is not None:
                rows.append(row)
            elif line.endswith(b"\n"):
                raise UserError(f"{path}, line {number}: not a metrics line: {line[:60]!r}; delete the line")
        return rows

    def _mend(self, path: Path, series: str) -> None:
        """A kill may have cut the last line short: the next one must not be appended to it."""
        if series not in self._whole and path.exists() and not _ends_whole(path):
            _write(path, self.read(self.folder, series))
        self._whole.add(series)


def _parse(line: bytes, key: str) -> dict | None:
    try:
        row = parse_json(line, FILE_NAME)
    except UserError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get(key), int) else None


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read() == b"\n"


def _line(row: dict) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _write(path: Path, rows: list[dict]) -> None:
    atomic_write(path, b"".join(_line(row) for row in rows))
