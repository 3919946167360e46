"""The config.json of a saved network, without the folder that the network was loaded from."""

from __future__ import annotations

import json
from pathlib import Path

from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.untrusted import read_json

CONFIG_FILE = "config.json"
ORIGIN = "_name_or_path"  # diffusers writes it: a place on one machine, and another file for the same weights


def save_network(network: object, folder: Path) -> None:
    """Write a network of diffusers into a folder, in its layout with safetensors.

    Where it was loaded from is no part of it.
    """
    network.save_pretrained(folder, safe_serialization=True)  # type: ignore[attr-defined]
    path = folder / CONFIG_FILE
    settings = read_json(path)
    if settings.pop(ORIGIN, None) is not None:
        atomic_write(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
