"""`summary.json` as it stands on the disk, in the form of today whichever version wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import read_json

SUMMARY = "summary.json"
OLD_METRICS = "figures"  # the key `metrics` of a stage, in runs of earlier versions


def read_summary(path: Path) -> Any:
    """The content of a summary, unchecked but for its JSON. Raises `UserError` where that is damaged."""
    summary = read_json(path)
    stages = summary.get("stages") if isinstance(summary, dict) else None
    for record in stages.values() if isinstance(stages, dict) else ():
        if isinstance(record, dict) and OLD_METRICS in record:
            record.setdefault("metrics", record.pop(OLD_METRICS))
    return summary


def checked_summary(path: Path) -> dict[str, Any]:
    """A summary that a run can go on with. Raises `UserError` that names what is damaged."""
    remedy = "delete it to run every stage again"
    try:
        summary = read_summary(path)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    stages = summary.get("stages") if isinstance(summary, dict) else None
    if not isinstance(stages, dict):
        raise UserError(f"{path} is damaged: it lists no stages; {remedy}")
    for stage, record in stages.items():
        if not isinstance(record, dict) or not isinstance(record.get("metrics"), dict):
            raise UserError(f"{path} is damaged: the stage {stage!r} has no metrics; {remedy}")
    begun = summary.get("begun", {})
    if not isinstance(begun, dict) or not all(isinstance(note, dict) for note in begun.values()):
        raise UserError(f"{path} is damaged: what was begun is unreadable; {remedy}")
    return summary
