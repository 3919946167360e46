"""The card of a world model that was trained here: with what, on what, and how right it is."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmpo_ray.core.files import json_clean
from wmpo_ray.runs.machine import machine_name, package_versions

CARD, README = "card.json", "README.md"


def write_card(
    folder: Path, name: str, settings: Mapping[str, Any], data: Mapping[str, Any], metrics: Mapping[str, Any]
) -> None:
    """Write `card.json` and `README.md` beside the weights in `folder`."""
    card = {
        "settings": dict(settings),
        "data": dict(data),
        "metrics": dict(metrics),
        "versions": package_versions(),
        "machine": machine_name(),
        "date": datetime.date.today().isoformat(),
    }
    (folder / CARD).write_text(json.dumps(json_clean(card), indent=1, allow_nan=False) + "\n")
    (folder / README).write_text(_text(name, card))


def _text(name: str, card: Mapping[str, Any]) -> str:
    data, metrics = card["data"], card["metrics"]
    what = (
        f"Trained on {data['num_episodes']} episodes of {data['source']} (environment.kind = {data['environment']}); "
        f"{data['num_held_out']} others were held out, and the metrics are of those, replayed open loop before any "
        "alignment. `world_model.pretrained` takes this folder; all settings, versions and metrics stand in "
        f"`{CARD}`."
    )
    measured = [f"- {key}: {value:.4g}" for key, value in metrics.items() if isinstance(value, int | float)]
    return "\n".join([f"# World model of the run `{name}`", "", what, "", *measured, ""])
