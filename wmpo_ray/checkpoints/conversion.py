"""The same weights in another layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from wmpo_ray.checkpoints.checkpoint_kinds import POLICY, REWARD_MODEL, WORLD_MODEL, kind_of, policy_network
from wmpo_ray.checkpoints.inspection import fit_of
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.section import shown
from wmpo_ray.model_files.saved_networks import save_network
from wmpo_ray.model_files.weight_files import WeightFiles, check_values, find_weights, read_tensors
from wmpo_ray.policies.openvla.published_files import read_companions
from wmpo_ray.policies.openvla.settings import read_config
from wmpo_ray.reward_models.published_videomae import PublishedRewardModel
from wmpo_ray.world_models.autoencoder import AutoencoderCodec
from wmpo_ray.world_models.published_stdit import load_published_network, published_world_model, save_published_network
from wmpo_ray.world_models.stdit import STDiT

_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B", re.IGNORECASE)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Wish(NamedTuple):
    """How a checkpoint is to be written."""

    layout: str
    dtype: torch.dtype
    ema: bool
    drop_dead: bool
    autoencoder: str | Path | None
    max_shard_size: int | str


def convert_checkpoint(
    source: str | Path,
    folder: str | Path,
    layout: str,
    *,
    dtype: str = "float32",
    ema: bool = True,
    drop_dead: bool = False,
    autoencoder: str | Path | None = None,
    max_shard_size: int | str = "5GB",
) -> str:
    """Read a checkpoint, write it to a new `folder` in `layout`, and say what kind of model it is.

    A world model becomes `reference` (the published names), `diffusers` (the network alone) or `wmpo` (with sampler
    settings and `autoencoder`, as `world_model.pretrained` takes it); a reward model or a policy becomes
    `transformers`, whose names are the published ones. Raises UserError for anything else.
    """
    if Path(folder).exists():
        raise UserError(f"{folder} exists: name a new folder")
    if not Path(folder).parent.is_dir():
        raise UserError(f"{Path(folder).parent} does not exist")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: known are {', '.join(DTYPES)}")
    if isinstance(max_shard_size, str) and not _SIZE.fullmatch(max_shard_size.strip()):
        raise ConfigError(f"max-shard = {shown(max_shard_size)}: give a number and a unit, such as 5GB or 500MB")
    files = find_weights(source, ema)
    kind = kind_of(files)
    layouts, save = WRITERS.get(kind.name, ((), None))
    if save is None or layout not in layouts:
        known = ", ".join(layouts) or "none"
        raise ConfigError(f"layout = {layout!r}: {source} holds a model of kind {kind.name}, its layouts are: {known}")
    save(files, Path(folder), _Wish(layout, DTYPES[dtype], ema, drop_dead, autoencoder, max_shard_size))
    return kind.name


def _save_reward_model(files: WeightFiles, folder: Path, wish: _Wish) -> None:
    PublishedRewardModel.load(files.path, dtype=wish.dtype).save(folder)


def _save_world_model(files: WeightFiles, folder: Path, wish: _Wish) -> None:
    network = load_published_network(files.path, ema=wish.ema, drop_dead=wish.drop_dead, dtype=wish.dtype)
    if wish.layout == "reference":
        save_published_network(network, folder, dead_parameters=not wish.drop_dead, max_shard_size=wish.max_shard_size)
    else:
        _save_ours(network, folder, wish.layout, wish.autoencoder)


def _save_ours(network: STDiT, folder: Path, layout: str, autoencoder: str | Path | None) -> None:
    if layout == "wmpo" and autoencoder is None:
        raise ConfigError(
            "layout = 'wmpo': a world model is network and autoencoder; give its folder with --autoencoder"
        )
    with atomic_directory(folder) as partial:
        if autoencoder is None or layout == "diffusers":
            save_network(network, partial)
        else:
            published_world_model(network, AutoencoderCodec.load(autoencoder)).save(partial)


def _save_policy(files: WeightFiles, folder: Path, wish: _Wish) -> None:
    """Safetensors with an index and the small files; one part is in memory at a time."""
    beside = files.parts[0].parent
    build, names = policy_network(files)
    fit = fit_of(files, build, names)
    foreign = [name for name in fit.foreign if not POLICY.is_passed_over(name)]
    for what, found in (
        ("lack", fit.missing),
        ("have the wrong shape or dtype:", fit.wrong),
        ("hold in addition", foreign),
    ):
        if found:
            raise UserError(f"{files.path}: the weights {what} {found[0]} and {len(found) - 1} more")
    with torch.device("meta"):
        shapes = {name: torch.empty(files.specs[name].shape, dtype=wish.dtype) for name in fit.in_file}
    parts = split_torch_state_dict_into_shards(
        shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=wish.max_shard_size
    )
    with atomic_directory(folder) as partial:
        for part, held in parts.filename_to_tensors.items():
            tensors = {}
            for name, tensor in read_tensors(files, dict.fromkeys(held, "")):
                tensors[name] = tensor.to(wish.dtype).contiguous()
                check_values(name, tensors[name], files.path)
            save_file(tensors, partial / part, metadata={"format": "pt"})
        if parts.is_sharded:
            index = {"metadata": parts.metadata, "weight_map": parts.tensor_to_filename}
            (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
        config = read_config(beside, num_tensors=len(files.specs))
        config.dtype = wish.dtype
        config.save_pretrained(partial)
        for name, content in read_companions(beside).items():
            (partial / name).write_bytes(content)


# The layouts that a kind of model can be written in, and what writes them.
WRITERS: dict[str, tuple[tuple[str, ...], Callable[[WeightFiles, Path, _Wish], None]]] = {
    WORLD_MODEL.name: (("reference", "diffusers", "wmpo"), _save_world_model),
    REWARD_MODEL.name: (("transformers", "reference"), _save_reward_model),
    POLICY.name: (("transformers", "reference"), _save_policy),
}
