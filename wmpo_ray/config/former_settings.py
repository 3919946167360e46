"""Settings as they were once called, in the files of runs and of users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMER_MIRROR = "world_model.alignment.vertical_flip"  # what `augmentation.mirror` is now


def without_ignored_sampler(data: Any) -> Any:
    """Before there were solvers, the sampler of a pretrained model could not be chosen: what was written had no effect."""
    world_model = data.get("world_model") if isinstance(data, dict) else None
    if not isinstance(world_model, dict) or not isinstance(world_model.get("sampler"), dict):
        return data
    if "solver" in world_model["sampler"] or not world_model.get("pretrained"):
        return data
    return {**data, "world_model": {key: value for key, value in world_model.items() if key != "sampler"}}


def with_present_mirror(data: Any) -> Any:
    """Of a run: whether clips were turned upside down was a setting of the alignment, on for every environment."""
    world_model = data.get("world_model") if isinstance(data, dict) else None
    alignment = world_model.get("alignment") if isinstance(world_model, dict) else None
    if not (isinstance(alignment, dict) and isinstance(world_model, dict) and "vertical_flip" in alignment):
        return data
    rest = {key: value for key, value in alignment.items() if key != "vertical_flip"}
    return {**data, "world_model": {**world_model, "alignment": rest}}


def with_present_mirror_of_user(own: dict[str, Any]) -> dict[str, Any]:
    """Of a user's file: false is what `augmentation.mirror = "none"` says; true, the default, is left to the environment.

    Any other value stays, and is refused as an unknown key.
    """
    world_model = own.get("world_model")
    alignment = world_model.get("alignment") if isinstance(world_model, Mapping) else None
    if not (isinstance(alignment, Mapping) and isinstance(alignment.get("vertical_flip"), bool)):
        return own
    present = with_present_mirror(own)
    augmentation = own.get("augmentation", {})
    if alignment["vertical_flip"] or not isinstance(augmentation, Mapping):
        return present
    return {**present, "augmentation": {"mirror": "none", **augmentation}}
