"""What a run's receipt says of the models and episodes that it began with."""

from __future__ import annotations

from pathlib import Path

from wmpo_ray.config.dumping import flatten
from wmpo_ray.config.run import Config
from wmpo_ray.world_models.diffusion import PRETRAINED_DIR

INPUTS = ("pretrained", "codec", "source")  # settings that name a model, or recorded episodes


def inputs_of(config: Config) -> dict[str, Path]:
    """Setting -> the file or folder that it names, for those that are on this machine."""
    named = {key: value for key, value in flatten(config).items() if key.rpartition(".")[2] in INPUTS and value}
    places = {key: [Path(str(value)), PRETRAINED_DIR / str(value)] for key, value in named.items()}
    found = {key: next((path for path in paths if path.exists()), None) for key, paths in places.items()}
    return {key: path for key, path in found.items() if path is not None}
