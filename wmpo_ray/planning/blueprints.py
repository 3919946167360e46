"""From a configuration to models without values: what would be built, of which sizes, and where those come from.

`build` and `inputs` of a blueprint are meant for the meta device, where the largest model takes no memory. Where a
configuration names a folder, its sizes are read from there; one that is not there yet is taken to be the published model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmpo_ray.config.run import Config, DenoiserConfig, SamplerConfig, WorldModelConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import read_json
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.model_files.weight_files import find_weights
from wmpo_ray.planning.model_sizes import CONTEXT_FRAMES, PROMPT_LENGTH, SDXL_AUTOENCODER, VIDEOMAE_BASE

Depths = Sequence[int]
ASSUMED = "published sizes"


class Blueprint(NamedTuple):
    """A network that can be built as deep as asked; `depths` are its own, one for each stack of layers."""

    source: str  # where the sizes come from
    depths: tuple[int, ...]
    build: Callable[[Depths], nn.Module]
    inputs: Callable[[int], dict[str, Tensor]]  # keyword arguments of `forward` for a batch of so many


@dataclass(frozen=True)
class WorldBlueprint:
    """A world model: its network, what surrounds it, and the frames that it sees."""

    source: str
    depth: int
    build: Callable[[int], Any]  # depth -> DiffusionWorldModel
    frame_shape: tuple[int, int, int]
    action_dim: int
    halves: bool  # activations are bfloat16


def is_there(folder: str) -> bool:
    return bool(folder) and Path(folder).exists()


# -- policies ----------------------------------------------------------------------------------------------------


def policy_blueprint(config: Config, facts: EnvironmentFacts) -> Blueprint:
    make = _openvla if config.policy.kind == "openvla_oft" else _tiny_policy
    return make(config, facts)


def _tiny_policy(config: Config, facts: EnvironmentFacts) -> Blueprint:
    from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of

    folder = config.policy.pretrained
    if is_there(folder):
        source, settings = folder, TinyPolicyHFConfig.from_dict(read_json(Path(folder) / "config.json"))
    else:
        source = "policy.network"
        settings = TinyPolicyHFConfig(
            **config.policy.network.model_dump(),
            frame_size=facts.frame_shape[0],
            chunk_length=config.rollout.chunk_length,
            action_dim=facts.action_dim,
            vocabulary=vocabulary_of(facts.instructions),
        )

    def build(depths: Depths) -> nn.Module:
        return TinyPolicy(TinyPolicyHFConfig.from_dict({**settings.to_dict(), "num_layers": depths[0]}))

    def inputs(batch: int) -> dict[str, Tensor]:
        return {
            "frames": torch.zeros(batch, *facts.frame_shape, dtype=torch.uint8),
            "word_ids": torch.zeros(batch, settings.max_words, dtype=torch.int64),
        }

    return Blueprint(source, (settings.num_layers,), build, inputs)


def _openvla(config: Config, facts: EnvironmentFacts) -> Blueprint:
    from wmpo_ray.policies.openvla.lora import add_lora
    from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
    from wmpo_ray.policies.openvla.settings import OpenVLAConfig, build_config

    choice, folder = config.policy.openvla, config.policy.pretrained
    known = read_json(Path(folder) / "config.json") if is_there(folder) else {}
    changes = {"num_actions_chunk": config.rollout.chunk_length, "action_dim": facts.action_dim}
    settings = build_config({"text_config": {}, **known, "compute_dtype": "float32"}, changes).to_dict()
    sizes = OpenVLAConfig(**settings)
    depths = (sizes.towers[0].depth, sizes.towers[1].depth, sizes.text_config.num_hidden_layers)

    def build(depths: Depths) -> nn.Module:
        towers = {
            name: {**settings["timm_overrides"].get(name, {}), "depth": depth}
            for name, depth in zip(("featurizer", "fused_featurizer"), depths, strict=False)
        }
        text = {**settings["text_config"], "num_hidden_layers": depths[2]}
        policy = OpenVLAOFTPolicy(OpenVLAConfig(**{**settings, "text_config": text, "timm_overrides": towers}))
        if choice.lora_rank:
            add_lora(policy, choice.lora_rank, choice.lora_alpha)
        return policy

    def inputs(batch: int) -> dict[str, Tensor]:
        return {
            "input_ids": torch.ones(batch, PROMPT_LENGTH, dtype=torch.int64),
            "pixel_values": torch.zeros(batch, 6, *sizes.image_sizes),
        }

    return Blueprint(folder if known else ASSUMED, depths, build, inputs)


# -- world models ------------------------------------------------------------------------------------------------


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
    from wmpo_ray.world_models.denoiser import Denoiser
    from wmpo_ray.world_models.diffusion import DiffusionWorldModel
    from wmpo_ray.world_models.sampler import RectifiedFlowSampler
    from wmpo_ray.world_models.stdit import STDiT

    settings = _world_settings(config, facts, pretrained)
    # Autocast does not change what is computed, and there is none where tensors have no values.
    denoiser = settings.denoiser.model_copy(update={"precision": "fp32"})
    sampler = RectifiedFlowSampler(config.world_model.sampler.over(settings.sampler))
    halves = settings.denoiser.precision == "bf16"

    def build(depth: int) -> DiffusionWorldModel:
        network = STDiT(**{**settings.network, "depth": depth})
        return DiffusionWorldModel(
            Denoiser(network, denoiser, settings.frame_size),
            _codec(config.world_model, settings.codec, halves),
            sampler,
            settings.context_frames,
            config.rollout.chunk_length,
        )

    return WorldBlueprint(
        settings.source, settings.network["depth"], build, facts.frame_shape, facts.action_dim, halves
    )


def _world_settings(config: Config, facts: EnvironmentFacts, pretrained: str) -> _WorldSettings:
    from wmpo_ray.world_models.diffusion import PRETRAINED_DIR, SETTINGS_FILE

    shipped = PRETRAINED_DIR / pretrained
    folder = shipped if pretrained and shipped.is_dir() else Path(pretrained)
    if not pretrained:
        return _fresh_world(config, facts)
    if (folder / SETTINGS_FILE).is_file():
        return _own_world(folder)
    return _published_world(config, facts, folder)


def _fresh_world(config: Config, facts: EnvironmentFacts) -> _WorldSettings:
    from wmpo_ray.world_models.denoiser import MAP_CHANNELS, num_action_features

    world = config.world_model
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
    from wmpo_ray.world_models.diffusion import SETTINGS_FILE

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


def _published_world(config: Config, facts: EnvironmentFacts, folder: Path) -> _WorldSettings:
    from wmpo_ray.world_models.published_stdit import published_sizes
    from wmpo_ray.world_models.stdit import PRESETS

    codec = config.world_model.codec
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
    return _WorldSettings(source, sizes, config.world_model.denoiser, SamplerConfig(), codec, context, (height, width))


def _codec(config: WorldModelConfig, name: str, halves: bool) -> Any:
    """The codec of a folder, or SDXL's where there is none yet; "pixel" for pixels."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    from wmpo_ray.world_models.autoencoder import AutoencoderCodec, PixelCodec

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


# -- reward models -----------------------------------------------------------------------------------------------


def reward_blueprint(config: Config, facts: EnvironmentFacts) -> Blueprint:
    """The classifier of one clip."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    from wmpo_ray.reward_models.published_videomae import published_config
    from wmpo_ray.reward_models.videomae import VideoMAERewardModel

    folder = config.reward.pretrained
    if config.reward.kind == "videomae_published":
        there = is_there(folder)
        source = folder if there else ASSUMED
        settings = published_config(find_weights(folder)) if there else VideoMAEConfig(**VIDEOMAE_BASE)
    elif is_there(folder):
        source, settings = folder, VideoMAEConfig.from_dict(read_json(Path(folder) / "config.json"))
    else:
        source = "reward.network"
        with torch.device("meta"):
            model = VideoMAERewardModel.create(config.reward, facts.frame_shape[0], facts.instructions, config.seed)
        settings = model.network.config

    def build(depths: Depths) -> nn.Module:
        return VideoMAEForVideoClassification(
            VideoMAEConfig.from_dict({**settings.to_dict(), "num_hidden_layers": depths[0]})
        )

    def inputs(batch: int) -> dict[str, Tensor]:
        size = (settings.num_frames, settings.num_channels, settings.image_size, settings.image_size)
        return {"pixel_values": torch.zeros(batch, *size)}

    return Blueprint(source, (settings.num_hidden_layers,), build, inputs)
