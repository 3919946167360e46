"""The published world models: STDiT networks in the reference's checkpoint folders, read and written."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.section import Count
from wmpo_ray.core.untrusted import NetworkSettings, TensorSpec, read_settings, refuse_unread
from wmpo_ray.model_files.weight_files import WeightFiles, find_weights, load_network
from wmpo_ray.world_models.attention import Backend
from wmpo_ray.world_models.autoencoder import FrameCodec
from wmpo_ray.world_models.denoiser import Denoiser
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig, SamplerConfig
from wmpo_ray.world_models.sampler import RectifiedFlowSampler, resolution_shift
from wmpo_ray.world_models.stdit import STDiT, is_dead

logger = logging.getLogger(__name__)

# Options of ours that change what the network computes; the reference has no word for them.
OUR_OPTIONS = ("mlp_activation", "gate", "per_block_modulation", "out_channels")
# Sizes that cannot be inferred from any tensor.
NOT_IN_WEIGHTS = ("pad_action_num", "input_sq_size", "conditioning_timestep")


# Settings of the reference's that leave no trace in what trained weights compute.
OF_TRAINING = (
    *("architectures", "class_dropout_prob", "drop_path", "dtype", "enable_flash_attn", "enable_layernorm_kernel"),
    *("enable_sequence_parallelism", "freeze_y_embedder", "input_size", "model_type", "note", "only_train_temporal"),
    *("skip_y_embedder", "torch_dtype", "transformers_version"),
)
SCHEDULER_FILE = "scheduler_config.json"  # of diffusers


class _Settings(NetworkSettings):
    pad_action_num: Count | None = None
    input_sq_size: Count | None = None
    conditioning_timestep: float | None = None


def load_published_network(
    path: str | Path,
    *,
    ema: bool = True,
    drop_dead: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: Backend = "auto",
    compiled: bool = False,
) -> STDiT:
    """An STDiT from a file or folder of the reference's, whatever its sizes, or from a diffusers folder.

    `ema` takes averaged weights before raw ones; `drop_dead` leaves out the parameters that take no part, otherwise
    they are kept and written again by `save_published_network`. A `config.json` beside the weights is compared with
    the sizes that the tensors have. `compiled` gives the blocks to torch.compile. Raises UserError for anything else.
    """
    files = find_weights(path, ema)
    sizes = published_sizes(files)
    keep = not drop_dead and any(is_dead(name) for name in files.specs)
    network = load_network(
        files,
        lambda: STDiT(**sizes, keep_unused_parameters=keep),
        ignored=is_dead if not keep else lambda name: False,
        dtype=dtype,
        device=device,
    )
    backend = network.choose_attention(attention)
    logger.info("%s: %d parameters, %s on %s, attention %s", path, network.num_parameters(), dtype, device, backend)
    if compiled:
        network.compile_repeated_blocks()
    return network


def published_sizes(files: WeightFiles) -> dict[str, Any]:
    """The arguments of `STDiT` for these weights, read from their shapes and from a config.json beside them."""
    sizes = _sizes_of(files.specs, files.path)
    for folder in dict.fromkeys((files.parts[0].parent, files.path)):
        if (folder / SCHEDULER_FILE).is_file():
            raise UserError(
                f"{folder / SCHEDULER_FILE} is not read: a published world model is sampled as world_model.sampler says; "
                "set that, and move the file away"
            )
        path = folder / "config.json"
        if path.is_file():
            return sizes | _settings_beside(path, sizes)
    return sizes


def _sizes_of(specs: Mapping[str, TensorSpec], path: Path) -> dict[str, Any]:
    try:
        patches = specs["x_embedder.proj.weight"].shape
        width, in_channels, patch_size = patches[0], patches[1], patches[2:]
        out_channels = specs["final_layer.linear.weight"].shape[0] // math.prod(patch_size)
        sizes = {
            "hidden_size": width,
            "depth": sum(name.startswith("spatial_blocks.") and name.endswith(".attn.qkv.weight") for name in specs),
            "num_heads": width // (2 * specs["rope.freqs"].shape[0]),
            "mlp_ratio": _ratio(specs["spatial_blocks.0.mlp.fc1.weight"].shape[0], width),
            "patch_size": tuple(patch_size),
            "in_channels": in_channels,
            "action_dim": specs["action_embedder.fc.0.weight"].shape[1],
            "qk_norm": "spatial_blocks.0.attn.q_norm.weight" in specs,
            "pred_sigma": out_channels != in_channels,
        }
        if "y_embedder.y_embedding" in specs:
            length, channels = specs["y_embedder.y_embedding"].shape
            sizes |= {"caption_channels": channels, "model_max_length": length}
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} holds no STDiT world model: {error} is not as in one") from error
    return sizes


def _ratio(hidden: int, width: int) -> float:
    """A ratio whose product with the width, cut to a whole number, is `hidden`."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _settings_beside(path: Path, sizes: Mapping[str, Any]) -> dict[str, Any]:
    settings = read_settings(path, _Settings).model_dump()
    refuse_unread(str(path), settings, (*inspect.signature(STDiT.__init__).parameters, *OF_TRAINING))
    defaults = {name: option.default for name, option in inspect.signature(STDiT.__init__).parameters.items()}
    for name in OUR_OPTIONS:
        if settings.get(name, defaults[name]) != defaults[name]:
            raise UserError(f"{path}: {name} = {settings[name]!r} is unknown to the reference's world models")
    for name, size in sizes.items():
        said = settings.get(name, size)
        same = (tuple(said) if isinstance(said, list) else said) == size
        if name == "mlp_ratio" and isinstance(said, int | float):
            same = int(sizes["hidden_size"] * said) == int(sizes["hidden_size"] * size)
        if not same:
            raise UserError(f"{path}: {name} = {said}, the weights are of {size}")
    return {name: settings[name] for name in NOT_IN_WEIGHTS if settings[name] is not None}


def save_published_network(
    network: STDiT, folder: str | Path, *, dead_parameters: bool = True, max_shard_size: int | str = "5GB"
) -> None:
    """Write a network under the reference's names: safetensors, in parts with an index above `max_shard_size`.

    The reference loads strictly, so parameters that take no part and were dropped are written as zeros, unless
    `dead_parameters` is False. Raises UserError for a network with options that the reference does not have.
    """
    defaults = {name: option.default for name, option in inspect.signature(STDiT.__init__).parameters.items()}
    changed = [name for name in OUR_OPTIONS if network.config[name] != defaults[name]]
    if changed:
        raise UserError(f"the network has {changed[0]} = {network.config[changed[0]]!r}: the reference has no such key")
    with atomic_directory(Path(folder)) as partial:
        state = _with_dead_parameters(network) if dead_parameters else dict(network.state_dict())
        save_torch_state_dict(
            state, partial, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
        )
        sizes = {name: value for name, value in network.config.items() if name in defaults and name not in OUR_OPTIONS}
        sizes.pop("keep_unused_parameters")
        (partial / "config.json").write_text(json.dumps(sizes, indent=1) + "\n")


def _with_dead_parameters(network: STDiT) -> dict[str, Tensor]:
    with torch.device("meta"):
        whole = STDiT(**{**network.config, "keep_unused_parameters": True}).state_dict()
    state = network.state_dict()
    return {
        name: state[name] if name in state else torch.zeros(tensor.shape, dtype=network.dtype)
        for name, tensor in whole.items()
    }


def published_world_model(
    network: STDiT,
    codec: FrameCodec,
    *,
    frame_size: tuple[int, int] = (256, 256),
    chunk_length: int = 8,
    num_steps: int = 30,
    denoiser: DenoiserConfig | None = None,
) -> DiffusionWorldModel:
    """The world model as the reference runs it: Euler steps over the resolution's times, clean context latents.

    `frame_size` is (height, width) in pixels; the context is as long as the frames without an action. `denoiser`: other
    noise, times or precision than the reference's, but the same meaning of what the network gives.
    """
    shown = Denoiser(network, denoiser or DenoiserConfig(), frame_size)
    sampler = RectifiedFlowSampler(SamplerConfig(num_steps=num_steps, shift=resolution_shift(*frame_size)))
    return DiffusionWorldModel(shown, codec, sampler, network.config.pad_action_num, chunk_length)
