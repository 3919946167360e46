"""What is counted without values is what really executed models do, and at full size what is known of them."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.small_plans import autoencoder_settings, config_of, openvla_settings
from wmpo_ray.config.run import Config
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.planning.blueprints import Blueprint, policy_blueprint, reward_blueprint, world_blueprint
from wmpo_ray.planning.costs import TERA, choose_trained, policy_cost, reward_model_cost, world_model_cost
from wmpo_ray.planning.counting import Meter
from wmpo_ray.world_models.diffusion import LatentContext

WITH_PEFT = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


def executed_flops(call) -> int:
    """What torch's own counter sees of a call on real tensors, with attention as plain products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def facts_of(config: Config):
    return environment_facts(config.environment)


@torch.no_grad()
def forward_flops(blueprint: Blueprint) -> int:
    network = blueprint.build(blueprint.depths).eval()
    return executed_flops(lambda: network(**blueprint.inputs(1)))


def test_a_decision_of_either_policy_costs_what_executing_it_does(tmp_path):
    tiny = config_of("policy.network.num_layers=5", "policy.network.patch_size=2")
    published = config_of(*openvla_settings(tmp_path / "vla"))
    for config in (tiny, published):
        executed = forward_flops(policy_blueprint(config, facts_of(config)))
        assert policy_cost(config, facts_of(config)).tflop * TERA == pytest.approx(executed, rel=1e-9)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rank", [0, pytest.param(4, marks=WITH_PEFT)])
def test_training_on_a_decision_costs_what_executing_it_does(tmp_path, rank, checkpointing):
    settings = [
        f"policy.openvla.lora_rank={rank}",
        f"policy.openvla.gradient_checkpointing={str(checkpointing).lower()}",
    ]
    config = config_of(*openvla_settings(tmp_path / "vla"), *settings, "policy.openvla.compute_dtype=float32")
    cost = policy_cost(config, facts_of(config))
    blueprint = policy_blueprint(config, facts_of(config))
    policy = blueprint.build(blueprint.depths).eval()
    assert cost.num_trained == choose_trained(policy, config.trained_parameters)
    assert cost.num_parameters == sum(p.numel() for p in policy.parameters())
    if checkpointing:
        policy.activation_checkpointing_enable()
        policy.train()
    executed = executed_flops(lambda: policy(**blueprint.inputs(1)).sum().backward())
    assert cost.training_tflop * TERA == pytest.approx(executed, rel=1e-9)
    inputs = blueprint.inputs(1)
    with Meter() as meter:
        output = policy(**inputs)
        held = meter.now
    assert cost.held_bytes == pytest.approx(held, rel=0.01) and output.requires_grad


def test_checkpointing_holds_less_and_computes_more(tmp_path):
    settings = openvla_settings(tmp_path / "vla")
    plain, saving = (
        policy_cost(config, facts_of(config))
        for config in (config_of(*settings), config_of(*settings, "policy.openvla.gradient_checkpointing=true"))
    )
    assert saving.held_bytes < 0.5 * plain.held_bytes
    assert plain.training_tflop < saving.training_tflop <= plain.training_tflop + plain.tflop


@pytest.mark.parametrize("sampler", [["num_steps=3"], ["num_steps=3", "solver=unipc"]])
def test_a_chunk_costs_what_imagining_it_does(tmp_path, sampler):
    settings = [*autoencoder_settings(tmp_path / "vae"), *(f"world_model.sampler.{setting}" for setting in sampler)]
    config = config_of(*settings)
    cost = world_model_cost(config, facts_of(config), "")
    blueprint = world_blueprint(config, facts_of(config), "")
    world = blueprint.build(blueprint.depth)
    world.denoiser.eval()
    frames = torch.zeros(1, world.context_frames, 16, 16, 3, dtype=torch.uint8)
    encoded = executed_flops(lambda: world.codec.encode(frames))
    assert world.context_frames * cost.encode_tflop * TERA == pytest.approx(encoded, rel=1e-9)
    state, actions = LatentContext(world.codec.encode(frames), ("",)), torch.zeros(1, world.chunk_length, 3)
    executed = executed_flops(lambda: world.step_chunk(state, actions, [0]))
    counted = cost.denoise_tflop + world.chunk_length * cost.decode_tflop
    assert counted * TERA == pytest.approx(executed, rel=1e-9)
    assert cost.num_parameters == sum(p.numel() for p in world.denoiser.network.parameters())


@torch.no_grad()
def test_the_whole_clip_in_every_step_is_more_work_by_the_conditioning_frames(tmp_path):
    config = config_of(*autoencoder_settings(tmp_path / "vae"))
    cost = world_model_cost(config, facts_of(config), "")
    blueprint = world_blueprint(config, facts_of(config), "")
    world = blueprint.build(blueprint.depth)
    c, k = world.context_frames, world.chunk_length
    mask = (torch.arange(c + k) >= c)[None]
    uncached = executed_flops(
        lambda: world.denoiser.network(torch.zeros(1, 4, c + k, 8, 8), torch.ones(1), torch.zeros(1, k, 3), mask)
    )
    assert cost.step_tflop * TERA < uncached < (cost.step_tflop + cost.condition_tflop) * TERA * 1.05


def test_a_clip_of_either_reward_model_costs_what_executing_it_does():
    for config in (config_of("reward.network.num_layers=5"), config_of("reward.network.num_layers=2")):
        executed = forward_flops(reward_blueprint(config, facts_of(config)))
        assert reward_model_cost(config, facts_of(config)).tflop * TERA == pytest.approx(executed, rel=1e-9)


FULL_SIZE = [
    "environment.kind=mimicgen",
    "environment.task=Coffee_D0",
    "environment.horizon=256",
    "rollout.chunk_length=8",
    "policy.kind=openvla_oft",
    "policy.pretrained=not-there/policy",
    "world_model.pretrained=not-there/world",
    "world_model.codec=not-there/vae",
    "world_model.sampler.num_steps=30",
    "reward.kind=videomae_published",
    "reward.pretrained=not-there/reward",
    "reward.clip_length=8",
]


def test_published_models_cost_what_is_known_of_them():
    config = config_of(*FULL_SIZE)
    facts = facts_of(config)
    world = world_model_cost(config, facts, config.world_model.pretrained)
    assert world.step_tflop == pytest.approx(3.7, rel=0.1)
    assert world.step_tflop + world.condition_tflop == pytest.approx(5.6, rel=0.1)
    assert world.denoise_tflop == pytest.approx(114, rel=0.1)
    assert world.decode_tflop == pytest.approx(0.62, rel=0.1)
    assert world.num_parameters == pytest.approx(908e6, rel=0.01), "1,213M, of which 305M take no part"
    assert reward_model_cost(config, facts).tflop == pytest.approx(0.16, rel=0.1)
    policy = policy_cost(config, facts)
    assert policy.tflop == pytest.approx(5.0, rel=0.1)
    assert policy.num_parameters == pytest.approx(7.54e9, rel=0.01)
    assert policy.training_tflop == pytest.approx(3 * policy.tflop, rel=0.02)
