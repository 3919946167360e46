"""The files of an OpenVLA folder: weights streamed from their shards, and the small files beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import TensorSpec, inside, parse_json, read_bytes, read_json, tensor_specs
from wmpo_ray.policies.openvla.images import DINO_MEAN, DINO_STD, SIGLIP_MEAN, SIGLIP_STD, ImageProcessor
from wmpo_ray.policies.openvla.prompt import TOKENIZER, TOKENIZER_MODEL
from wmpo_ray.policies.openvla.settings import OpenVLAConfig

STEM = "model"
STATISTICS, PREPROCESSOR = "dataset_statistics.json", "preprocessor_config.json"
# What a saved policy needs beside weights and config.json; carried along as it was read.
COMPANIONS = (
    STATISTICS,
    TOKENIZER,
    PREPROCESSOR,
    TOKENIZER_MODEL,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
MAX_COMPANION_BYTES = 64 * 2**20

PIECE_ELEMENTS = 2**18  # of a tensor on its way from the disk; larger temporaries fragment the heap
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


# -- weights -----------------------------------------------------------------------------------------------------


def load_weights(network: nn.Module, folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
    """Fill a network that stands on the meta device from the shards of a folder, a piece of a tensor at a time.

    The peak in host memory is the network itself (nothing, for another device) and a few megabytes. Raises UserError
    for tensors that are missing, foreign, of another shape, cut off or not finite.
    """
    wanted = network.state_dict()
    shards = weight_shards(folder)
    _check_names(folder, wanted, shards)
    loaded = {}
    for path, specs in shards.items():
        with open(path, "rb") as file:
            offsets = _offsets(file)
            for name, spec in specs.items():
                if name in wanted:
                    file.seek(offsets[name])
                    loaded[name] = _read(file, spec, dtype, device, f"{path}: {name}")
    network.load_state_dict(loaded, strict=True, assign=True)


def weight_shards(folder: Path) -> dict[Path, dict[str, TensorSpec]]:
    """The safetensors files that hold the weights, each with what it holds.

    The index decides, however many files it names. Raises UserError where index and files do not agree.
    """
    single, index = folder / f"{STEM}.safetensors", folder / f"{STEM}.safetensors.index.json"
    if single.exists() and not index.exists():
        return {single: tensor_specs(single)}
    content = read_json(index)
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise UserError(f"{index} is damaged: it lists no files")
    shards = {}
    for part in sorted(set(parts.values())):
        if not part.endswith(".safetensors"):
            raise UserError(f"{index} names {shown(part)}: only safetensors files are loaded")
        path = inside(folder, part, str(index))
        specs = tensor_specs(path)
        listed = {name for name, place in parts.items() if place == part}
        if differing := sorted(listed ^ specs.keys()):
            where = "lists it there and the file lacks it" if differing[0] in listed else "does not list it there"
            raise UserError(f"{path} and {index.name} disagree about {shown(differing[0])}: the index {where}")
        shards[path] = specs
    return shards


def _check_names(folder: Path, wanted: Mapping[str, Tensor], shards: Mapping[Path, Mapping[str, TensorSpec]]) -> None:
    specs = {name: spec for part in shards.values() for name, spec in part.items()}
    if missing := sorted(wanted.keys() - specs.keys()):
        raise UserError(f"{folder}: the weights lack {missing[0]!r} and {len(missing) - 1} more")
    foreign = sorted(name for name in specs.keys() - wanted.keys() if not is_stored_frequency(name))
    if foreign:
        raise UserError(
            f"{folder}: the weights have {shown(foreign[0])} and {len(foreign) - 1} more that this network does not; "
            "merge adapters and drop extra heads first"
        )
    for name, tensor in wanted.items():
        if specs[name].shape != tuple(tensor.shape) or specs[name].dtype not in _DTYPES:
            raise UserError(
                f"{folder}: {name} is {specs[name].dtype} {specs[name].shape} in the weights; config.json asks for "
                f"{tuple(tensor.shape)} in one of {sorted(_DTYPES)}"
            )


def is_stored_frequency(name: str) -> bool:
    """Older versions of transformers stored the rotary frequencies, which follow from the config."""
    return name.endswith("rotary_emb.inv_freq")


def _offsets(file: BufferedReader) -> dict[str, int]:
    """Where each tensor starts; the library has checked the header against the size of the file before."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _read(file: BufferedReader, spec: TensorSpec, dtype: torch.dtype, device: torch.device | str, where: str) -> Tensor:
    tensor = torch.empty(spec.shape, dtype=dtype, device=device)
    flat, count = tensor.view(-1), math.prod(spec.shape)
    buffer = torch.empty(min(PIECE_ELEMENTS, count), dtype=_DTYPES[spec.dtype])
    for start in range(0, count, PIECE_ELEMENTS):
        piece = buffer[: count - start]
        target = piece.view(torch.uint8).numpy().data
        if file.readinto(target) != target.nbytes:
            raise UserError(f"{where} is cut off: the file ends before it")
        piece = piece.to(dtype)
        # A value that is not a number shows in both ends: one pass, and no memory for a mask.
        if not all(bool(end.isfinite()) for end in piece.aminmax()):
            raise UserError(f"{where} holds values that are not finite in {dtype}; the training that wrote it failed")
        flat[start : start + len(piece)] = piece
    return tensor


# -- the files beside the weights --------------------------------------------------------------------------------


def read_companions(folder: Path) -> dict[str, bytes]:
    """Name -> content of those of `COMPANIONS` that are there."""
    return {name: read_bytes(folder / name, MAX_COMPANION_BYTES) for name in COMPANIONS if (folder / name).exists()}


class _Normalization(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class _Preprocessor(BaseModel):
    """What counts of a preprocessor_config.json: the images have their size when it would resize and crop them."""

    tvf_normalize_params: tuple[_Normalization, _Normalization] | None = None
    input_sizes: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    tvf_do_letterbox: Literal[False] = False


class Normalization(NamedTuple):
    means: tuple[tuple[float, ...], ...]
    stds: tuple[tuple[float, ...], ...]


def normalization(companions: Mapping[str, bytes], size: tuple[int, int]) -> Normalization:
    """Means and deviations of the two towers. What the processor's JSON stores overrides the towers' own values.

    Raises UserError for a JSON that makes no sense or is for another image size.
    """
    standard = Normalization((DINO_MEAN, SIGLIP_MEAN), (DINO_STD, SIGLIP_STD))
    if PREPROCESSOR not in companions:
        return standard
    try:
        content = _Preprocessor.model_validate(parse_json(companions[PREPROCESSOR], PREPROCESSOR))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{PREPROCESSOR} is damaged: {key} = {shown(first['input'])}: {first['msg']}") from None
    if content.input_sizes and any(tuple(entry[1:]) != size for entry in content.input_sizes):
        raise UserError(
            f"{PREPROCESSOR}: input_sizes={content.input_sizes} differ from image_sizes={list(size)} in config.json"
        )
    if content.tvf_normalize_params is None:
        return standard
    stds = tuple(entry.std for entry in content.tvf_normalize_params)
    if min(min(std) for std in stds) <= 0:
        raise UserError(f"{PREPROCESSOR}: tvf_normalize_params has std={stds}; it must be positive")
    return Normalization(tuple(entry.mean for entry in content.tvf_normalize_params), stds)


def image_processor(companions: Mapping[str, bytes], config: OpenVLAConfig) -> ImageProcessor:
    size = (int(config.image_sizes[0]), int(config.image_sizes[1]))
    return ImageProcessor(size, *normalization(companions, size), steps=config.image_steps)
