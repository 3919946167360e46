"""A vision-language model from a local folder: its files are checked before the libraries that read them are called."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import (
    BAD_SETTINGS,
    FORBIDDEN_KEYS,
    MAX_JSON_BYTES,
    MAX_SETTINGS_BYTES,
    check_finite,
    check_folder,
    indexed_specs,
    read_json,
    regular_file,
    tensor_specs,
)
from wmpo_ray.model_files.lean_imports import lean

with lean():
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

MAX_SIDE = 2**14  # pixels that a processor may make of a side
MAX_PIXELS = 2**26  # where a pair of numbers bounds the pixels of a picture
MAX_FILE_BYTES = 64 * 2**20  # of a small file beside the weights, such as a large tokenizer's settings
SMALL_FILES = (".json", ".jinja", ".txt", ".model")
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".py")


class VlmFiles(NamedTuple):
    network: nn.Module
    processor: Any


def load_vlm(folder: Path, dtype: torch.dtype) -> VlmFiles:
    """The network in evaluation mode and the processor of a folder that `transformers` wrote.

    Raises UserError for weights other than safetensors, files that name code or other files to fetch, sizes that the
    weights do not have, and classes that transformers does not know, or that need a library that is not installed.
    """
    check_files(folder)
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        network, found = AutoModelForImageTextToText.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype=dtype,
        )
    except (OSError, ImportError, *BAD_SETTINGS) as error:
        raise UserError(f"{folder} cannot be loaded by transformers: {_first_line(error)}") from error
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in found[what]):
            raise UserError(f"{folder}: of the weights that its config.json asks for, {shown(names[0])} does not fit")
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise UserError(f"{folder}: its processor does not read pictures and text")
    check_finite(network, folder)
    return VlmFiles(network.eval(), processor)


def check_files(folder: Path) -> None:
    """Refuse a folder whose files ask for more than its weights have, or for anything to be run or fetched."""
    check_folder(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and not path.name.endswith(".index.json"):
            limit = MAX_JSON_BYTES if path.name == "tokenizer.json" else MAX_FILE_BYTES
            _check_keys(path, read_json(path, limit))
        elif path.suffix in SMALL_FILES:
            regular_file(path, MAX_FILE_BYTES)
    held = _weights(folder)
    settings = read_json(folder / "config.json", MAX_SETTINGS_BYTES)
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise UserError(f"{folder / 'config.json'} is damaged: it names no model_type")
    num_layers = _num_layers(settings)
    if num_layers > len(held):
        raise UserError(f"{folder / 'config.json'} declares {num_layers} layers; the weights are {len(held)} tensors")
    asked, there = _num_parameters(folder / "config.json", settings), sum(held.values())
    if asked > there:
        raise UserError(f"{folder}: config.json asks for {asked} parameters, the weights have {there}")


def files_to_keep(folder: Path) -> list[Path]:
    """The files of a model that was loaded from a folder."""
    kept = (".safetensors", *SMALL_FILES)
    return [path for path in sorted(folder.iterdir()) if path.suffix in kept and path.is_file()]


def _weights(folder: Path) -> dict[str, int]:
    """Number of elements of each tensor."""
    if foreign := [path.name for path in sorted(folder.iterdir()) if path.suffix in OTHER_FORMATS]:
        raise UserError(f"{folder} holds {foreign[0]}: only safetensors are loaded, and no code; remove it")
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() == index.exists():
        raise UserError(f"{folder}: exactly one of {single.name} and {index.name} must be there")
    parts = [tensor_specs(single)] if single.exists() else indexed_specs(index).values()
    return {name: math.prod(spec.shape) for part in parts for name, spec in part.items()}


def _check_keys(path: Path, content: Any, depth: int = 0) -> None:
    """Refuse keys that have the loader import or fetch something, and pictures without bounds, however deep."""
    if depth > 64:
        raise UserError(f"{path} is damaged: it is nested too deeply")
    children = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    if isinstance(content, dict):
        if found := [key for key in FORBIDDEN_KEYS if content.get(key)]:
            raise UserError(
                f"{path}: the key {found[0]!r} is not allowed: a model folder holds weights, and runs nothing"
            )
        for key in ("height", "width", "shortest_edge", "longest_edge"):
            is_pixels = key == "longest_edge" and content.get("shortest_edge")
            _check_side(path, key, content.get(key), MAX_PIXELS if is_pixels else MAX_SIDE)
    for child in children:
        if isinstance(child, dict | list):
            _check_keys(path, child, depth + 1)


def _check_side(path: Path, key: str, value: Any, bound: int) -> None:
    if isinstance(value, int | float) and not 0 < value <= bound:
        raise UserError(f"{path}: {key} = {shown(value)} must lie between 1 and {bound}")


def _num_layers(settings: Any) -> int:
    """The largest number of layers that any part of a config.json declares."""
    largest = 0
    for key, value in settings.items():
        if isinstance(value, dict):
            largest = max(largest, _num_layers(value))
        elif isinstance(value, int) and ("layers" in key or "depth" in key or "experts" in key):
            largest = max(largest, value)
    return largest


def _num_parameters(path: Path, settings: dict[str, Any]) -> int:
    """Of the network that would be built; those that are tied count once."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            config = AutoConfig.for_model(**settings)
            network = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
            return sum(parameter.numel() for parameter in network.parameters())
    except (ImportError, *BAD_SETTINGS) as error:
        raise UserError(f"{path}: no vision-language model can be made from it: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
