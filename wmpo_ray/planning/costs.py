"""What one policy decision, one imagined chunk and one judged clip cost: work and memory, counted on the meta device."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.plan_types import Blueprint, WorldBlueprint
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.planning.blueprints import policy_blueprint, reward_blueprint, world_blueprint
from wmpo_ray.planning.counting import FusedAttention, Meter, extrapolate
from wmpo_ray.world_models.decoding_memory import decode_bytes, frames_within

TERA = 1e12
T = TypeVar("T")


@dataclass(frozen=True)
class PolicyCost:
    """A policy; work and activations are those of one decision."""

    source: str
    num_parameters: int
    num_trained: int
    num_gathered: int  # whole at once where ranks share the weights: what is in no layer, one layer and the next
    tflop: float  # to act
    training_tflop: float  # forward and backward, with what gradient checkpointing computes again
    acting_bytes: float
    held_bytes: float  # from a forward pass to its backward pass
    block_bytes: float  # of them, or beside them under gradient checkpointing: one of the largest layers
    sample_bytes: int = 0  # see Blueprint


@dataclass(frozen=True)
class WorldModelCost:
    """A world model; memory is that of one trajectory."""

    source: str
    num_parameters: int  # of the video transformer
    num_codec_parameters: int
    num_evaluations: int  # of the transformer, for a chunk
    encode_tflop: float  # one frame
    condition_tflop: float  # the conditioning frames of one chunk, once
    step_tflop: float  # one evaluation
    decode_tflop: float  # one frame
    context_frames: int
    chunk_length: int
    halves: bool  # activations and autoencoder are bfloat16
    cache_bytes: float
    denoise_bytes: float
    decode_bytes: float  # one batch of frames, whatever the number of trajectories

    @property
    def denoise_tflop(self) -> float:
        """One chunk."""
        return self.condition_tflop + self.num_evaluations * self.step_tflop


@dataclass(frozen=True)
class RewardModelCost:
    source: str
    num_parameters: int
    tflop: float  # one clip
    judging_bytes: float  # activations of one clip


def without_values(make: Callable[[], T]) -> T:
    """What `make` builds, on the meta device.

    Models are only built there and not called: tables that the code keeps from a first call must not lose their values.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return make()


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# -- policies ----------------------------------------------------------------------------------------------------


def policy_cost(config: Config, facts: EnvironmentFacts) -> PolicyCost:
    """Raises ConfigError where nothing of the policy would be trained."""
    return cost_of_policy(
        policy_blueprint(config, facts),
        dtype=getattr(torch, config.policy.compute_dtype),
        trained=config.trained_parameters,
        checkpointing=config.policy.gradient_checkpointing,
        section=config.algorithm.section,
    )


def cost_of_policy(
    blueprint: Blueprint, dtype: torch.dtype, trained: str, checkpointing: bool, section: str = "grpo"
) -> PolicyCost:
    """`trained`: a regular expression on the names of the parameters that are trained, a setting of `section`."""

    def measure(depths: Any) -> np.ndarray:
        policy: Any = without_values(lambda: blueprint.build(depths)).to(dtype).eval()
        num_trained = choose_trained(policy, trained)
        if not num_trained:
            raise ConfigError(f"{section}.trained_parameters={trained!r} matches no parameter of the policy")
        acting = _forward(policy, blueprint)
        kept = plain = _training(policy, blueprint)
        if checkpointing and policy.supports_gradient_checkpointing:
            policy.activation_checkpointing_enable({"use_reentrant": False, "context_fn": _recomputation})
            policy.train()
            kept = _training(policy, blueprint)
        return np.array([num_parameters(policy), num_trained, _num_gathered(policy), *acting, *kept, plain[1]])

    found = extrapolate(measure, blueprint.depths)
    flops, acting_bytes, training_flops, held, plain_held = found[3:]
    return PolicyCost(
        source=blueprint.source,
        num_parameters=int(found[0]),
        num_trained=int(found[1]),
        num_gathered=int(found[2]),
        tflop=flops / TERA,
        training_tflop=training_flops / TERA,
        acting_bytes=acting_bytes,
        held_bytes=held,
        block_bytes=plain_held / sum(blueprint.depths),
        sample_bytes=blueprint.sample_bytes,
    )


def choose_trained(policy: nn.Module, pattern: str) -> int:
    """Let the parameters whose names match be trained; their number of values."""
    chosen = 0
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(bool(re.search(pattern, name)))
        chosen += parameter.numel() * parameter.requires_grad
    return chosen


def _num_gathered(policy: nn.Module) -> int:
    names = set(getattr(policy, "_no_split_modules", None) or ())
    layers = [num_parameters(module) for module in policy.modules() if type(module).__name__ in names]
    return num_parameters(policy) - sum(layers) + 2 * max(layers, default=0)


def _forward(network: nn.Module, blueprint: Blueprint) -> tuple[float, float]:
    """Operations and bytes of a forward pass."""
    inputs = without_values(lambda: blueprint.inputs(1))
    with torch.no_grad(), FusedAttention(), Meter() as meter:
        network(**inputs)
    return meter.flops, meter.peak


def _training(network: nn.Module, blueprint: Blueprint) -> tuple[float, float]:
    """Operations of a forward and a backward pass, and the bytes held between the two."""
    inputs = without_values(lambda: blueprint.inputs(1))
    with FusedAttention(), Meter() as meter:
        output = network(**inputs)
        held = meter.now
        output.float().sum().backward()
    network.zero_grad(set_to_none=True)
    return meter.flops, held


def _recomputation() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of a checkpointed layer and of its recomputation, where the modes around the backward pass are off."""
    return nullcontext(), FusedAttention()


# -- world models ------------------------------------------------------------------------------------------------


def world_model_cost(config: Config, facts: EnvironmentFacts, pretrained: str) -> WorldModelCost | None:
    """Of the world model in the folder `pretrained` (""; a fresh one); None for a simulator, which costs nothing."""
    blueprint = world_blueprint(config, facts, pretrained)
    return cost_of_world_model(blueprint) if blueprint is not None else None


def cost_of_world_model(blueprint: WorldBlueprint) -> WorldModelCost:
    def measure(depths: Any) -> np.ndarray:
        return np.array(_denoising(blueprint, depths[0]))

    found = extrapolate(measure, [blueprint.depth])
    world = without_values(lambda: blueprint.build(1))
    network, codec = world.denoiser.network, world.codec
    frame = torch.zeros(1, 1, *blueprint.frame_shape, dtype=torch.uint8, device="meta")
    with torch.no_grad():
        latents = codec.encode(frame)
        with FusedAttention(), Meter() as encoding:
            codec.encode(frame)
        with FusedAttention(), Meter() as decoding:
            codec.decode(latents)
    itemsize = 2 if blueprint.halves else network.dtype.itemsize
    return WorldModelCost(
        source=blueprint.source,
        num_parameters=int(found[0]),
        num_codec_parameters=num_parameters(codec.autoencoder) if hasattr(codec, "autoencoder") else 0,
        num_evaluations=world.sampler.evaluations_per_chunk,
        encode_tflop=encoding.flops / TERA,
        condition_tflop=found[1] / TERA,
        step_tflop=found[2] / TERA,
        decode_tflop=decoding.flops / TERA,
        context_frames=world.context_frames,
        chunk_length=world.chunk_length,
        halves=blueprint.halves,
        cache_bytes=found[3] / network.dtype.itemsize * itemsize,
        denoise_bytes=found[4] / network.dtype.itemsize * itemsize,
        decode_bytes=_decoding_bytes(codec, latents),
    )


def _denoising(blueprint: WorldBlueprint, depth: int) -> tuple[float, ...]:
    """Parameters, operations of the conditioning and of a step, bytes of the cache and of a step, for one trajectory."""
    world = without_values(lambda: blueprint.build(depth))
    denoiser = world.denoiser.eval()
    clip = torch.zeros(1, 1, *blueprint.frame_shape, dtype=torch.uint8, device="meta")
    with torch.no_grad():
        latent = world.codec.encode(clip)  # [1, C, 1, h, w]
        context = latent.expand(-1, -1, world.context_frames, -1, -1)
        noisy = latent.expand(-1, -1, world.chunk_length, -1, -1)
        actions = torch.zeros(1, world.chunk_length, blueprint.action_dim, device="meta")
        time = torch.ones(1, device="meta")
        with FusedAttention(), Meter() as condition:
            conditioning = denoiser.condition(context, context)
        with FusedAttention(), Meter() as step:
            denoiser.velocity(noisy, time, actions, conditioning)
    cache = sum(tensor.numel() * tensor.itemsize for pair in conditioning.cache.blocks for tensor in pair)
    return num_parameters(denoiser.network), condition.flops, step.flops, cache, step.peak


def _decoding_bytes(codec: Any, latents: Tensor) -> float:
    network = getattr(codec, "decoder", None) or getattr(codec, "autoencoder", None)
    if network is None:
        return 0.0
    size = latents.shape[-2:]
    count = codec.frames_per_batch
    if codec.max_decode_bytes is not None:
        fitting, tile = frames_within(network, size, codec.max_decode_bytes)
        if tile is not None:
            return codec.max_decode_bytes
        count = min(count, fitting)
    return count * decode_bytes(network, *size)


# -- reward models -----------------------------------------------------------------------------------------------


def reward_model_cost(config: Config, facts: EnvironmentFacts) -> RewardModelCost:
    return cost_of_reward_model(reward_blueprint(config, facts))


def cost_of_reward_model(blueprint: Blueprint) -> RewardModelCost:
    def measure(depths: Any) -> np.ndarray:
        network = without_values(lambda: blueprint.build(depths)).eval()
        return np.array([num_parameters(network), *_forward(network, blueprint)])

    found = extrapolate(measure, blueprint.depths)
    return RewardModelCost(blueprint.source, int(found[0]), found[1] / TERA, found[2])
