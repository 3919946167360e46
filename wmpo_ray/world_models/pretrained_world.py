"""The world model that a run begins with: a fresh one, one of ours, or published weights with a published codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from wmpo_ray.config.models import WorldModelTrainingConfig
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import refuse_ignored, shown
from wmpo_ray.environments.facts import EnvironmentFacts, environment_facts
from wmpo_ray.world_models.autoencoder import AutoencoderCodec, PixelCodec
from wmpo_ray.world_models.denoiser import TIME_SCALE
from wmpo_ray.world_models.diffusion import (
    PRETRAINED_DIR,
    SETTINGS_FILE,
    TINY_DECODER,
    DiffusionWorldModel,
    make_codec,
)
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig, DiffusionConfig
from wmpo_ray.world_models.published_stdit import load_published_network, published_world_model
from wmpo_ray.world_models.target_views import targets_alone

# Of `DenoiserConfig`: what published weights were trained for. The rest is the user's.
OF_PUBLISHED_WEIGHTS = ("prediction", "input_scaling", "residual", "action_bands", "action_map")


def begin_world_model(config: Config, pretrained: str, seed: int) -> DiffusionWorldModel:
    """What alignment begins with, on the CPU in float32: `pretrained` is a folder or shipped name, "": a fresh network.

    The sampler is the model's own where `world_model.sampler` says nothing. Raises ConfigError for settings that the
    weights contradict, and for those that only fresh weights could follow; UserError for damaged files.
    """
    settings, chunk = _section(config), config.rollout.chunk_length
    facts = environment_facts(config.environment)
    if not pretrained:
        _check_patches(settings, facts)
        fresh = DiffusionWorldModel.create(settings, facts.action_dim, chunk, seed, facts.layout)
        fresh.denoiser.config = as_aligned(fresh.denoiser.config, settings.alignment)
        return fresh
    if (PRETRAINED_DIR / pretrained / SETTINGS_FILE).is_file() or (Path(pretrained) / SETTINGS_FILE).is_file():
        world = _ours(config, pretrained)
    elif Path(pretrained).exists():
        world = _published(config, pretrained)
    else:
        world = DiffusionWorldModel.load(pretrained)  # whose error names what is shipped
    refuse_ignored(settings.network, world.denoiser.network.config, "world_model.network", pretrained)
    refuse_ignored(settings, {"context_frames": world.context_frames}, "world_model", pretrained)
    if world.chunk_length != chunk:
        raise ConfigError(
            f"rollout.chunk_length={chunk}: the world model {pretrained} imagines chunks of {world.chunk_length} "
            "frames; change it, or world_model.pretrained"
        )
    if world.denoiser.layout != targets_alone(facts.layout, world.denoiser.config):
        raise ConfigError(
            f"world_model.pretrained = {shown(pretrained)} was taught other views of where an action aims than "
            f"environment.kind = {shown(config.environment.kind)} has; change one of them"
        )
    world.denoiser.config = as_aligned(world.denoiser.config, settings.alignment)
    return world.with_sampler(settings.sampler.over(world.sampler.config))


def _check_patches(settings: DiffusionConfig, facts: EnvironmentFacts) -> None:
    """Raises ConfigError for frames that a fresh network of pixels cannot cut into whole patches."""
    (height, width, _), (_, rows, columns) = facts.frame_shape, settings.network.patch_size
    if settings.codec == PixelCodec.name and (height % rows or width % columns):
        raise ConfigError(
            f"world_model.network.patch_size = {list(settings.network.patch_size)}: frames of {height} x {width} pixels "
            f"cannot be cut into patches of {rows} x {columns}; change world_model.network.patch_size"
        )


def as_aligned(own: DenoiserConfig, alignment: WorldModelTrainingConfig) -> DenoiserConfig:
    """A model's own settings with those that its alignment changes."""
    changes: dict[str, Any] = {}
    noise = alignment.conditioning_noise
    if noise is not None:
        changes = {"conditioning_noise": noise, "sampling_noise": noise if own.sampling_noise else 0.0}
    if alignment.action_level is not None:
        changes["action_level"] = alignment.action_level
    return own.model_copy(update=changes)


def place_world_model(world: DiffusionWorldModel, config: Config, device: torch.device) -> DiffusionWorldModel:
    """Move it to where it imagines, with the attention and the compilation that the config asks for."""
    world.to(device)
    settings = _section(config)
    if settings.attention != "auto":
        world.denoiser.network.choose_attention(settings.attention)
    if settings.compile:
        world.denoiser.network.compile_repeated_blocks()
    return world


def _section(config: Config) -> DiffusionConfig:
    return cast(DiffusionConfig, config.world_model)


def _ours(config: Config, path: str) -> DiffusionWorldModel:
    """A folder that brings its settings and its codec; how much memory decoding takes is still the user's choice."""
    settings, world = _section(config), DiffusionWorldModel.load(path)
    refuse_ignored(settings.denoiser, world.denoiser.config.model_dump(), "world_model.denoiser", path)
    codec = world.codec
    own = {"codec": codec.name, "tiny_decoder": "", "posterior": "mean"}
    if isinstance(codec, AutoencoderCodec):
        own["tiny_decoder"] = TINY_DECODER if codec.decoder is not None else ""
        own["posterior"] = "mean" if codec.posterior_seed is None else "sample"
        codec.max_decode_bytes = settings.max_decode_bytes or codec.max_decode_bytes
    refuse_ignored(settings, own, "world_model", path)
    return world


def _published(config: Config, path: str) -> DiffusionWorldModel:
    """Weights under the reference's names: no settings come with them, so what is not in the weights is the config's."""
    settings, facts = _section(config), environment_facts(config.environment)
    standard = DenoiserConfig()
    for key in OF_PUBLISHED_WEIGHTS:
        if (value := getattr(settings.denoiser, key)) != getattr(standard, key):
            raise ConfigError(
                f"world_model.denoiser.{key} = {shown(value)}: the published weights in {path} were trained with "
                f"{shown(getattr(standard, key))}; remove the key, or set world_model.pretrained to other weights"
            )
    network = load_published_network(path)
    if network.config.action_dim != facts.action_dim:
        raise ConfigError(
            f"world_model.pretrained = {shown(path)}: its actions have {network.config.action_dim} dimensions, those of "
            f"environment.kind={shown(config.environment.kind)} have {facts.action_dim}; change one of them"
        )
    timestep = TIME_SCALE * settings.denoiser.conditioning_noise
    if not settings.alignment.steps and timestep != network.config.conditioning_timestep:
        raise ConfigError(
            f"world_model.denoiser.conditioning_noise = {settings.denoiser.conditioning_noise}: the weights in {path} "
            f"know {network.config.conditioning_timestep / TIME_SCALE:g}, and world_model.alignment.steps=0 does not train "
            "them for another; change one of them"
        )
    network.register_to_config(conditioning_timestep=timestep)
    codec = make_codec(settings)
    if codec.latent_channels != network.config.in_channels:
        raise ConfigError(
            f"world_model.codec = {shown(settings.codec)}: its latents have {codec.latent_channels} channels, the world "
            f"model {path} wants {network.config.in_channels}; name the folder of the autoencoder it was trained with"
        )
    height, width, _ = facts.frame_shape
    return published_world_model(
        network,
        codec,
        frame_size=(height, width),
        chunk_length=config.rollout.chunk_length,
        denoiser=settings.denoiser,
    )
