"""What a config names is what is loaded; what contradicts the files is told, with the key to change."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.published_set import CHUNK, CONTEXT, NETWORK, published_settings, write_published_set
from tests.support.small_world import small_world_model
from wmpo_ray.config.loading import validate
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.observations import Observation
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig
from wmpo_ray.registry import (
    begin_world_model,
    load_policy,
    load_reward_model,
    load_world_model,
    pretrained_policy,
    pretrained_reward_model,
)

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="adapters need peft")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return write_published_set(tmp_path_factory.mktemp("published"))


def config_of(folders: dict[str, Path], **changes: Any) -> Config:
    """`changes`: dotted keys, with two underscores for a dot."""
    settings = published_settings(folders)
    for key, value in changes.items():
        *sections, name = key.split("__")
        table = settings
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    return validate(settings)


# -- policies ----------------------------------------------------------------------------------------------------


def test_a_published_policy_takes_chunk_robot_and_statistics_from_the_config(folders):
    config = config_of(folders)
    policy = load_policy(config, str(folders["policy"]))
    assert (policy.chunk_length, policy.action_dim) == (CHUNK, 3)
    assert policy.config.image_steps == "resize" and policy.statistics.q99.tolist() == [1.0, 2.0, 1.0]
    with pytest.raises(UserError, match="tea"):
        load_policy(config_of(folders, policy__openvla__unnorm_key="tea"), str(folders["policy"]))


def test_weights_are_as_wide_as_their_work_wants(folders, tmp_path):
    """float32 to be trained, as saved to be passed on, and rounded where weights arrive rounded."""
    half = tmp_path / "half"
    pretrained_policy(config_of(folders)).to(torch.bfloat16).save_pretrained(half)
    settings = {"policy__pretrained": str(half), "policy__openvla__compute_dtype": "bfloat16"}
    for dtype, acting in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        config = config_of(folders, **settings, weights__dtype=dtype)
        assert load_policy(config, str(half)).dtype == acting
        assert load_policy(config, str(half), training=True).dtype == torch.float32
        assert pretrained_policy(config).dtype == torch.bfloat16
    exact = config_of(folders, policy__pretrained=str(half), weights__dtype="bfloat16")
    assert load_policy(exact, str(half)).dtype == torch.float32, "compute_dtype=float32 is never rounded"


@needs_peft
def test_every_process_begins_with_the_same_adapters(folders):
    config = config_of(folders, policy__openvla__lora_rank=2, weights__dtype="bfloat16")
    torch.manual_seed(1)
    learner = load_policy(config, str(folders["policy"]), training=True).state_dict()
    torch.manual_seed(2)
    replica = load_policy(config, str(folders["policy"])).state_dict()
    assert learner.keys() == replica.keys() and any("lora_A" in name and learner[name].any() for name in learner)
    assert all(torch.equal(learner[name], replica[name]) for name in learner)
    assert config.trained_parameters == "lora_" and config_of(folders).trained_parameters == ""
    other = load_policy(config.model_copy(update={"seed": 9}), str(folders["policy"])).state_dict()
    assert any(not torch.equal(other[name], replica[name]) for name in replica)


def test_checkpointing_activations_changes_no_gradient(folders):
    policy_dir = str(folders["policy"])
    plain = load_policy(config_of(folders), policy_dir, training=True)
    frugal = load_policy(config_of(folders, policy__openvla__gradient_checkpointing=True), policy_dir, training=True)
    frames = torch.randint(
        0, 256, (2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).numpy()
    seen, record = (
        Observation.of(frames, ["push the block"] * 2),
        {"tokens": torch.full((2, CHUNK * 3), plain.first_action_id + 7)},
    )
    gradients = []
    for policy in (plain, frugal):
        policy.eval()
        policy.log_prob(seen, record, 1.6).sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert frugal.is_activation_checkpointing and not plain.is_activation_checkpointing
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_policy_of_another_chunk_or_robot_is_named(tmp_path):
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "vocabulary": ["go"]}
    TinyPolicy(TinyPolicyHFConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"rollout.chunk_length=8, the policy in .* was made for 4"):
        load_policy(validate({"rollout": {"chunk_length": 8}}), str(tmp_path))
    with pytest.raises(ConfigError, match=r"the action dimensions of environment.kind=7, the policy .* was made for 3"):
        load_policy(validate({"environment": {"kind": "mimicgen", "task": "Square_D0"}}), str(tmp_path))
    contradicting = {"policy": {"pretrained": str(tmp_path), "network": {"width": 32}, "cloning": {"steps": 0}}}
    with pytest.raises(ConfigError, match=r"policy.network.width = 32, in the model 16; remove these keys"):
        pretrained_policy(validate(contradicting))


# -- world models ------------------------------------------------------------------------------------------------


def test_a_published_world_model_takes_what_no_file_says_from_the_config(folders):
    settings = {"solver": "unipc", "num_steps": 3}
    config = config_of(folders, world_model__sampler=settings, world_model__posterior="sample")
    world = begin_world_model(config, config.world_model.pretrained, seed=0)
    assert (world.chunk_length, world.context_frames, world.denoiser.frame_size) == (CHUNK, CONTEXT, (16, 16))
    assert (world.sampler.config.solver, world.sampler.config.num_steps) == ("unipc", 3)
    assert world.codec.posterior_seed is not None


def test_the_sampler_of_a_pretrained_model_is_the_users_choice_and_else_its_own(tmp_path):
    small_world_model(num_steps=2).save(tmp_path)
    choice = {"pretrained": str(tmp_path)}
    own = begin_world_model(validate({"world_model": choice}), str(tmp_path), seed=0)
    assert own.sampler.config.num_steps == 2
    chosen = begin_world_model(
        validate({"world_model": {**choice, "sampler": {"num_steps": 5}}}), str(tmp_path), seed=0
    )
    assert chosen.sampler.config.num_steps == 5 and chosen.sampler.config.solver == own.sampler.config.solver


def test_settings_that_the_weights_contradict_are_refused_with_both_values(tmp_path):
    small_world_model().save(tmp_path)
    for section, key, value in (
        (None, "codec", '"autoencoder"'),
        ("network", "depth", 7),
        ("denoiser", "conditioning_noise", 0.5),
        (None, "context_frames", 3),
    ):
        given = json.loads(str(value))
        settings = {section: {key: given}} if section else {key: given}
        config = validate({"world_model": {"pretrained": str(tmp_path), **settings}})
        name = ".".join(part for part in ("world_model", section, key) if part)
        with pytest.raises(ConfigError, match=rf"{name} = {value}, in the model .*; remove these keys"):
            begin_world_model(config, str(tmp_path), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_model__denoiser": {"residual": True}}, r"world_model.denoiser.residual = true: the published weights"),
        ({"world_model__denoiser": {"conditioning_noise": 0.05}}, r"know 0.015, and world_model.alignment.steps=0"),
        ({"world_model__codec": "pixel"}, r'world_model.codec = "pixel": its latents have 3 channels, the world .* 4'),
        ({"world_model__network": {"depth": 7}}, r"world_model.network.depth = 7, in the model 1"),
        ({"environment": {"kind": "mimicgen", "task": "Square_D0"}}, r"have 3 dimensions, those of .* have 7"),
    ],
)
def test_what_published_weights_cannot_follow_is_named(folders, changes, message):
    config = config_of(folders, **changes)
    with pytest.raises(ConfigError, match=message):
        begin_world_model(config, config.world_model.pretrained, seed=0)


def test_noise_that_alignment_teaches_is_told_to_the_network(folders):
    denoiser = {"conditioning_noise": 0.05, "sampling_noise": 0.05}
    config = config_of(folders, world_model__denoiser=denoiser, world_model__alignment__steps=1)
    world = begin_world_model(config, config.world_model.pretrained, seed=0)
    assert world.denoiser.network.config.conditioning_timestep == 50.0


def test_a_run_imagines_what_it_saved(folders, tmp_path):
    config = config_of(folders, world_model__attention="plain")
    world = begin_world_model(config, config.world_model.pretrained, seed=0)
    world.save(tmp_path / "world-model")
    loaded = load_world_model(config, str(tmp_path / "world-model"))
    assert {block.attn.backend for block in loaded.denoiser.network.spatial_blocks} == {"plain"}
    for name, tensor in world.denoiser.network.state_dict().items():
        assert torch.equal(tensor, loaded.denoiser.network.state_dict()[name])
    assert loaded.denoiser.network.config.hidden_size == NETWORK["hidden_size"]


# -- reward models -----------------------------------------------------------------------------------------------


def test_a_reward_model_keeps_its_threshold_in_the_run(folders, tmp_path):
    config = config_of(folders)
    model = pretrained_reward_model(config)
    assert model.threshold == 0.5, "the published folder has none"
    model.threshold = 0.82
    model.save(tmp_path / "reward")
    assert load_reward_model(config, str(tmp_path / "reward")).threshold == 0.82
    (tmp_path / "reward" / "threshold.json").write_text(json.dumps({"threshold": "high"}))
    with pytest.raises(UserError, match=r"threshold.json"):
        load_reward_model(config, str(tmp_path / "reward"))


def test_sizes_of_a_reward_model_that_the_config_contradicts_are_named(folders):
    with pytest.raises(ConfigError, match=r"reward.clip_length=6: .* clips of 4 frames; set reward.clip_length=4"):
        pretrained_reward_model(config_of(folders, reward__clip_length=6))
    with pytest.raises(ConfigError, match=r"reward.network.hidden_size = 768, in the model 16"):
        pretrained_reward_model(config_of(folders, reward__network={"hidden_size": 768, "num_heads": 12}))
