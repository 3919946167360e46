"""From a configuration to a diffusion world model without values, for plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.plan_types import ASSUMED, WorldBlueprint, is_there
from wmpo_ray.core.untrusted import read_json
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.model_files.weight_files import find_weights
from wmpo_ray.world_models.autoencoder import AutoencoderCodec, PixelCodec
from wmpo_ray.world_models.denoiser import MAP_CHANNELS, Denoiser, num_action_features
from wmpo_ray.world_models.diffusion import PRETRAINED_DIR, SETTINGS_FILE, DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig, DiffusionConfig, SamplerConfig
from wmpo_ray.world_models.published_stdit import published_sizes
from wmpo_ray.world_models.sampler import RectifiedFlowSampler
from wmpo_ray.world_models.stdit import PRESETS, STDiT

CONTEXT_FRAMES = 4  # of the published world models
# STDiT3-XL/2 has its sizes as the defaults of `STDiT`.
SDXL_AUTOENCODER: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}


class _WorldSettings(NamedTuple):
    source: str
    network: dict[str, Any]
    denoiser: DenoiserConfig
    sampler: SamplerConfig
    codec: str  # "pixel", or a folder that may not be there yet
    context_frames: int
    frame_size: tuple[int, int] | None  # that the network scales its positions by


def world_blueprint(config: Config, facts: EnvironmentFacts, pretrained: str) -> WorldBlueprint:
    """Raises UserError where `pretrained` is missing and no published world model can be meant."""
    world = cast(DiffusionConfig, config.world_model)
    settings = _world_settings(world, facts, pretrained)
    # Autocast does not change what is computed, and there is none where tensors have no values.
    denoiser = settings.denoiser.model_copy(update={"precision": "fp32"})
    sampler = RectifiedFlowSampler(world.sampler.over(settings.sampler))
    halves = settings.denoiser.precision == "bf16"

    def build(depth: int) -> DiffusionWorldModel:
        network = STDiT(**{**settings.network, "depth": depth})
        return DiffusionWorldModel(
            Denoiser(network, denoiser, settings.frame_size),
            _codec(world, settings.codec, halves),
            sampler,
            settings.context_frames,
            config.rollout.chunk_length,
        )

    return WorldBlueprint(
        settings.source, settings.network["depth"], build, facts.frame_shape, facts.action_dim, halves
    )


def _world_settings(world: DiffusionConfig, facts: EnvironmentFacts, pretrained: str) -> _WorldSettings:
    shipped = PRETRAINED_DIR / pretrained
    folder = shipped if pretrained and shipped.is_dir() else Path(pretrained)
    if not pretrained:
        return _fresh_world(world, facts)
    if (folder / SETTINGS_FILE).is_file():
        return _own_world(folder)
    return _published_world(world, facts, folder)


def _fresh_world(world: DiffusionConfig, facts: EnvironmentFacts) -> _WorldSettings:
    with torch.device("meta"):
        channels = _codec(world, world.codec, halves=False).latent_channels
    network = {
        **world.network.model_dump(),
        "in_channels": channels + MAP_CHANNELS * world.denoiser.action_map,
        "out_channels": channels if world.denoiser.action_map else None,
        "action_dim": num_action_features(facts.action_dim, world.denoiser.action_bands),
        "pad_action_num": world.context_frames,
    }
    return _WorldSettings(
        "world_model.network", network, world.denoiser, SamplerConfig(), world.codec, world.context_frames, None
    )


def _own_world(folder: Path) -> _WorldSettings:
    network = {key: value for key, value in read_json(folder / "config.json").items() if not key.startswith("_")}
    settings = read_json(folder / SETTINGS_FILE)
    codec = settings["codec"] if settings["codec"] == "pixel" else str(folder / settings["codec"])
    height, width = settings.get("frame_size") or (None, None)
    return _WorldSettings(
        str(folder),
        network,
        DenoiserConfig.model_validate(settings["denoiser"]),
        SamplerConfig.model_validate(settings["sampler"]),
        codec,
        settings["context_frames"],
        (height, width) if height and width else None,
    )


def _published_world(world: DiffusionConfig, facts: EnvironmentFacts, folder: Path) -> _WorldSettings:
    codec = world.codec
    if codec == "pixel":
        raise UserError(
            f"no world model at {folder}; set world_model.pretrained to the folder of one, and world_model.codec to "
            "that of its autoencoder if it is a published one"
        )
    if folder.exists():
        source, sizes = str(folder), published_sizes(find_weights(folder))
    else:
        source, sizes = ASSUMED, {**PRESETS["XL/2"], "action_dim": facts.action_dim}
    height, width, _ = facts.frame_shape
    context = sizes.get("pad_action_num", CONTEXT_FRAMES)
    return _WorldSettings(source, sizes, world.denoiser, SamplerConfig(), codec, context, (height, width))


def _codec(config: DiffusionConfig, name: str, halves: bool) -> Any:
    """The codec of a folder, or SDXL's where there is none yet; "pixel" for pixels."""
    if name == PixelCodec.name:
        return PixelCodec()
    dtype = torch.bfloat16 if halves else torch.float32
    settings = read_json(Path(name) / "config.json") if is_there(name) else SDXL_AUTOENCODER
    decoder = None
    if tiny := config.tiny_decoder:
        decoder = AutoencoderTiny.from_config(read_json(Path(tiny) / "config.json") if is_there(tiny) else {})
        nn.Module.to(decoder, dtype)  # diffusers' own warns of modules that there are none of
    autoencoder = AutoencoderKL.from_config(settings)
    nn.Module.to(autoencoder, dtype)
    return AutoencoderCodec(autoencoder, decoder=decoder, max_decode_bytes=config.max_decode_bytes)
