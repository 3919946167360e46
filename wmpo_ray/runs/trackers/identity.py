"""The id of a run at a tracking service, saved in the run's folder, so that a resumed run continues there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.untrusted import read_json

FILE_NAME = "trackers.json"


def remembered(folder: Path, tracker: str, make: Callable[[], str]) -> str:
    """The id of this run at a tracker: the one of before, or a new one. Raises UserError where the file is damaged."""
    path = folder / FILE_NAME
    known = read_json(path) if path.exists() else {}
    if not isinstance(known, dict) or not all(isinstance(value, str) for value in known.values()):
        raise UserError(f"{path} is damaged: it should name a text for each tracker; delete it to begin new ones")
    if tracker not in known:
        known[tracker] = make()
        atomic_write(path, json.dumps(known, indent=1).encode())
    return known[tracker]
