"""The image processor of a published reward model, in the files and under the keys of old and new transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import Positive, shown
from wmpo_ray.core.untrusted import MAX_SETTINGS_BYTES, read_json, refuse_unread
from wmpo_ray.reward_models.preprocessing import PREPROCESSOR_FILE, FramePreprocessing, Side

CROP = 224  # of transformers' processor where the file has none
# The processor of a folder: transformers reads the first file first. The keys lead to it within the file.
PLACES = (
    ("processor_config.json", "image_processor"),
    ("processor_config.json", "video_processor"),
    (PREPROCESSOR_FILE, ""),
    ("video_preprocessor_config.json", ""),
)
# Of these, none changes what is computed of whole RGB frames.
NEUTRAL = (
    "image_processor_type",
    "video_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "data_format",
    "input_data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "model_input_names",
    "return_tensors",
)


def find_preprocessing(folder: Path) -> FramePreprocessing | None:
    """What a folder's files ask for; None where none of them says anything of images.

    Raises UserError for steps that are none of the published ones, and for files that contradict each other.
    """
    found = {}
    for name, key in PLACES:
        if (folder / name).is_file() and (read := _read(folder / name, key)) is not None:
            found[f"{name}, {key}" if key else name] = read
    if len(set(found.values())) > 1:
        raise UserError(
            f"{folder}: {' and '.join(found)} describe different processors; keep the one it was trained with"
        )
    return next(iter(found.values()), None)


def _read(path: Path, key: str) -> FramePreprocessing | None:
    content = read_json(path, MAX_SETTINGS_BYTES)
    where = f"{path}, {key}" if key else str(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no settings")
    if key:
        if (content := content.get(key)) is None:
            return None
        if not isinstance(content, dict):
            raise UserError(f"{path} is damaged: {key} holds no settings")
    try:
        settings = _Processor.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        named = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {named} = {shown(first['input'])}: {first['msg']}") from None
    refuse_unread(where, content, (*_Processor.model_fields, *NEUTRAL))
    return settings.preprocessing()


StrictSide = Annotated[Side, Field(strict=True)]


class _ShortestEdge(NamedTuple):
    pixels: StrictSide
    is_plain: bool  # a number, as old versions wrote it, which cropped to the same size


def _shortest_edge(value: Any) -> Any:
    """A number, or {"shortest_edge": number}: other sizes do not keep the shape of a frame."""
    if isinstance(value, dict):
        given = {key: size for key, size in value.items() if size is not None}
        if given.keys() != {"shortest_edge"}:
            raise ValueError("only a shortest_edge is known, which keeps the frame's shape")
        return _ShortestEdge(given["shortest_edge"], False)
    return _ShortestEdge(value, True)


def _square(value: Any) -> Any:
    """A number, [height, width], or both by name."""
    if isinstance(value, dict):
        given = {key: size for key, size in value.items() if size is not None}
        if given.keys() != {"height", "width"}:
            raise ValueError("only a height and a width are known")
        value = [given["height"], given["width"]]
    if isinstance(value, list) and len(value) == 2:
        height, width = value
        if height != width:
            raise ValueError(f"height {height} and width {width}: only square crops are known")
        value = height
    return value


def _triple(value: Any) -> Any:
    """One number stands for all channels."""
    return [value] * 3 if isinstance(value, int | float) and not isinstance(value, bool) else value


class _Processor(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)
    do_resize: Literal[True] = True
    do_center_crop: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: Literal[True] = True
    size: Annotated[_ShortestEdge, BeforeValidator(_shortest_edge)]
    resample: Literal[2, "bilinear"] = 2
    crop_size: Annotated[StrictSide, BeforeValidator(_square)] | None = None
    rescale_factor: Positive = 1 / 255
    image_mean: Annotated[tuple[FiniteFloat, FiniteFloat, FiniteFloat], BeforeValidator(_triple)]
    image_std: Annotated[tuple[Positive, Positive, Positive], BeforeValidator(_triple)]

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        self.preprocessing()
        return self

    def preprocessing(self) -> FramePreprocessing:
        crop = self.crop_size or (self.size.pixels if self.size.is_plain else CROP)
        return FramePreprocessing(
            resize=self.size.pixels, crop=crop, rescale=self.rescale_factor, mean=self.image_mean, std=self.image_std
        )
