"""The small files of an OpenVLA folder, beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import parse_json, read_bytes, refuse_unread
from wmpo_ray.policies.openvla.images import DINO_MEAN, DINO_STD, SIGLIP_MEAN, SIGLIP_STD, ImageProcessor
from wmpo_ray.policies.openvla.prompt import TOKENIZER, TOKENIZER_MODEL
from wmpo_ray.policies.openvla.settings import OpenVLAConfig

STEM = "model"
STATISTICS, PREPROCESSOR = "dataset_statistics.json", "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of newer versions of transformers, with the image processor inside
# What a saved policy needs beside weights and config.json; carried along as it was read.
COMPANIONS = (
    STATISTICS,
    TOKENIZER,
    PREPROCESSOR,
    PROCESSOR,
    TOKENIZER_MODEL,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
MAX_COMPANION_BYTES = 64 * 2**20


def is_stored_frequency(name: str) -> bool:
    """Older versions of transformers stored the rotary frequencies, which follow from the config."""
    return name.endswith("rotary_emb.inv_freq")


# -- the files beside the weights --------------------------------------------------------------------------------


def read_companions(folder: Path) -> dict[str, bytes]:
    """Name -> content of those of `COMPANIONS` that are there."""
    return {name: read_bytes(folder / name, MAX_COMPANION_BYTES) for name in COMPANIONS if (folder / name).exists()}


Triple = tuple[float, float, float]
Size = tuple[int, int]


class _Normalization(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)
    mean: Triple
    std: Triple


class _Resize(BaseModel):
    size: Size | int


class _Crop(BaseModel):
    output_size: Size


class _Preprocessor(BaseModel):
    """What counts of a preprocessor_config.json: the images have their size when it would resize and crop them."""

    model_config = ConfigDict(allow_inf_nan=False)
    tvf_normalize_params: tuple[_Normalization, _Normalization] | None = None
    means: tuple[Triple, Triple] | None = None
    stds: tuple[Triple, Triple] | None = None
    input_sizes: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    tvf_resize_params: tuple[_Resize, _Resize] | None = None
    tvf_crop_params: tuple[_Crop, _Crop] | None = None
    tvf_do_letterbox: Literal[False] = False
    image_resize_strategy: Literal["resize-naive"] = "resize-naive"
    use_fused_vision_backbone: Literal[True] | None = None

    def sizes(self) -> dict[str, list[Size]]:
        """(height, width) by the key that says so."""
        return {
            "input_sizes": [(entry[1], entry[2]) for entry in self.input_sizes or ()],
            "tvf_resize_params": [
                (entry.size, entry.size) if isinstance(entry.size, int) else entry.size
                for entry in self.tvf_resize_params or ()
            ],
            "tvf_crop_params": [entry.output_size for entry in self.tvf_crop_params or ()],
        }


# Images are resized by the policy's own `image_steps`, whatever is said of filters.
NEUTRAL = ("auto_map", "image_processor_type", "interpolations", "processor_class", "tvf_letterbox_fill")


class Normalization(NamedTuple):
    means: tuple[tuple[float, ...], ...]
    stds: tuple[tuple[float, ...], ...]


def normalization(companions: Mapping[str, bytes], size: tuple[int, int]) -> Normalization:
    """Means and deviations of the two towers. What the processor's JSON stores overrides the towers' own values.

    Raises UserError for a JSON that makes no sense or is for another image size.
    """
    standard = Normalization((DINO_MEAN, SIGLIP_MEAN), (DINO_STD, SIGLIP_STD))
    means, stds = standard
    settings, where = _processor_settings(companions)
    if settings is None:
        return standard
    try:
        content = _Preprocessor.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where} is damaged: {key} = {shown(first['input'])}: {first['msg']}") from None
    refuse_unread(where, settings, (*_Preprocessor.model_fields, *NEUTRAL))
    for name, sizes in content.sizes().items():
        if any(tuple(entry) != size for entry in sizes):
            raise UserError(f"{where}: {name} says {sizes}, image_sizes in config.json is {list(size)}")
    if entries := content.tvf_normalize_params:
        means, stds = tuple(entry.mean for entry in entries), tuple(entry.std for entry in entries)
    elif content.means or content.stds:
        means, stds = content.means or means, content.stds or stds
    if min(min(std) for std in stds) <= 0:
        raise UserError(f"{where}: the standard deviations are {stds}; they must be positive")
    return Normalization(means, stds)


def _processor_settings(companions: Mapping[str, bytes]) -> tuple[Any, str]:
    """The settings of the image processor, None where there are none, and what errors name."""
    found: dict[str, Any] = {}
    if PREPROCESSOR in companions:
        found[PREPROCESSOR] = parse_json(companions[PREPROCESSOR], PREPROCESSOR)
    if PROCESSOR in companions:
        content = parse_json(companions[PROCESSOR], PROCESSOR)
        if isinstance(content, dict) and content.get("image_processor") is not None:
            found[f"{PROCESSOR}, image_processor"] = content["image_processor"]
    if len(found) == 2 and found[PREPROCESSOR] != found[f"{PROCESSOR}, image_processor"]:
        raise UserError(f"{' and '.join(found)} differ; keep the one that the policy was trained with")
    return next(((settings, where) for where, settings in found.items()), (None, ""))


def image_processor(companions: Mapping[str, bytes], config: OpenVLAConfig) -> ImageProcessor:
    size = (int(config.image_sizes[0]), int(config.image_sizes[1]))
    return ImageProcessor(size, *normalization(companions, size), steps=config.image_steps)
