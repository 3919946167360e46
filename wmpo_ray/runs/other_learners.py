"""What learners from outside left in a run's folder: one folder each, `rllib/LABEL`, with its policy and its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import read_json

FOLDER, RESULT, OUTCOMES = "rllib", "result.json", "outcomes.json"
MOST = 32  # that are read


def other_learners(run: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    """The results by label, in order; what cannot be read is named in `notes`."""
    found = {}
    for path in sorted((run / FOLDER).glob(f"*/{RESULT}"))[:MOST]:
        try:
            content = read_json(path)
        except UserError as error:
            notes.append(f"{FOLDER}/{path.parent.name}: {error}.")
            continue
        if isinstance(content, dict):
            found[path.parent.name] = content
    return found
