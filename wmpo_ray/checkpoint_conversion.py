"""The same weights in another layout."""

from __future__ import annotations

from pathlib import Path

import torch

from wmpo_ray.checkpoint_inspection import KINDS, REWARD_MODEL, WORLD_MODEL
from wmpo_ray.errors import ConfigError, UserError
from wmpo_ray.files import atomic_directory
from wmpo_ray.reward_models.published import PublishedRewardModel
from wmpo_ray.weight_files import find_weights
from wmpo_ray.world_models.autoencoder import AutoencoderCodec
from wmpo_ray.world_models.published import load_published_network, published_world_model, save_published_network
from wmpo_ray.world_models.stdit import STDiT

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {WORLD_MODEL: ("reference", "diffusers", "wmpo"), REWARD_MODEL: ("transformers", "reference")}


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
    settings and `autoencoder`, as `world_model.pretrained` takes it); a reward model becomes `transformers`, whose
    names are the published ones. Raises UserError for anything else.
    """
    if Path(folder).exists():
        raise UserError(f"{folder} exists: name a new folder")
    if not Path(folder).parent.is_dir():
        raise UserError(f"{Path(folder).parent} does not exist")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: known are {', '.join(DTYPES)}")
    files = find_weights(source, ema)
    kind = next((kind for key, kind in KINDS.items() if key in files.specs), "unknown")
    if layout not in LAYOUTS.get(kind, ()):
        known = ", ".join(LAYOUTS.get(kind, ())) or "none"
        raise ConfigError(f"layout = {layout!r}: {source} holds a model of kind {kind}, its layouts are: {known}")
    if kind == REWARD_MODEL:
        PublishedRewardModel.load(source, dtype=DTYPES[dtype]).save(folder)
        return kind
    network = load_published_network(source, ema=ema, drop_dead=drop_dead, dtype=DTYPES[dtype])
    if layout == "reference":
        save_published_network(network, folder, dead_parameters=not drop_dead, max_shard_size=max_shard_size)
    else:
        _save_ours(network, Path(folder), layout, autoencoder)
    return kind


def _save_ours(network: STDiT, folder: Path, layout: str, autoencoder: str | Path | None) -> None:
    if layout == "wmpo" and autoencoder is None:
        raise ConfigError(
            "layout = 'wmpo': a world model is network and autoencoder; give its folder with --autoencoder"
        )
    with atomic_directory(folder) as partial:
        if autoencoder is None or layout == "diffusers":
            network.save_pretrained(partial, safe_serialization=True)
        else:
            published_world_model(network, AutoencoderCodec.load(autoencoder)).save(partial)
