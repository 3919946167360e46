"""Names to classes. Imports are lazy, so that naming a simulator does not need the others installed.

Models come back on the device of this process (`cluster.device`), unless another is named.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from wmpo_ray.algorithms.base import algorithm_class
from wmpo_ray.config.run import Config, EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Environment, Policy, RewardModel, WorldModel
from wmpo_ray.core.runtime_settings import process_device
from wmpo_ray.core.section import refuse_ignored, shown
from wmpo_ray.environments.facts import environment_facts

ENVIRONMENTS = {"pocket": "wmpo_ray.environments.pocket.env:PocketEnvironment"}
RECORDED_ENVIRONMENTS = ("aloha", "mimicgen")  # known by their facts alone
POLICIES = {
    "tiny": "wmpo_ray.policies.tiny:TinyPolicy",
    "openvla_oft": "wmpo_ray.policies.openvla.oft:OpenVLAOFTPolicy",
}
WORLD_MODELS = {
    "diffusion": "wmpo_ray.world_models.diffusion:DiffusionWorldModel",
    "simulator": "wmpo_ray.world_models.simulator:SimulatorWorldModel",
}
REWARD_MODELS = {
    "videomae": "wmpo_ray.reward_models.videomae:VideoMAERewardModel",
    "videomae_published": "wmpo_ray.reward_models.published_videomae:PublishedRewardModel",
}


def resolve(table: dict[str, str], kind: str, key: str) -> Any:
    """The class behind a name; ConfigError with the known names and the config key otherwise."""
    if kind not in table:
        raise ConfigError(f"{key}={kind!r} is unknown; known are {sorted(table)}")
    module, name = table[kind].split(":")
    return getattr(import_module(module), name)


def check_kinds(config: Config) -> None:
    """ConfigError for a kind that nothing is registered for, before any work is done."""
    _environment_class(config.environment)
    for table, kind, key in (
        (POLICIES, config.policy.kind, "policy.kind"),
        (WORLD_MODELS, config.world_model.kind, "world_model.kind"),
        (REWARD_MODELS, config.reward.kind, "reward.kind"),
    ):
        resolve(table, kind, key)
    algorithm_class(config.algorithm.kind)


# -- environments ------------------------------------------------------------------------------------------------


def make_environment(config: EnvironmentConfig) -> Environment:
    return _environment_class(config)(horizon=config.horizon, disruption=config.disruption)


def _environment_class(config: EnvironmentConfig) -> Any:
    if config.kind in RECORDED_ENVIRONMENTS:
        raise ConfigError(
            f"environment.kind={shown(config.kind)}: this version has no simulator of it, so none of its episodes can be "
            f"recorded or evaluated; `wmpo plan` works, and runs do with environment.kind of {sorted(ENVIRONMENTS)}"
        )
    return resolve(ENVIRONMENTS, config.kind, "environment.kind")


# -- policies ----------------------------------------------------------------------------------------------------


def load_policy(
    config: Config, path: str, *, training: bool = False, device: torch.device | str | None = None
) -> Policy:
    """The policy saved in `path`, with the adapters that the config asks for.

    `training`: to be trained, so with float32 weights, and activations checkpointed where the config says so; without
    it a policy that can compute in bfloat16 holds its weights in `weights.dtype`, as they arrive.
    """
    where = torch.device(device) if device else process_device(config.cluster.device)
    if config.policy.kind == "openvla_oft":
        from wmpo_ray.policies.openvla.lora import add_lora

        settings = config.policy.openvla
        rounded = not training and "bfloat16" == settings.compute_dtype == config.weights.dtype
        policy = _openvla(config, path, torch.bfloat16 if rounded else torch.float32, where)
        if settings.lora_rank:
            add_lora(policy, settings.lora_rank, settings.lora_alpha, dropout=settings.lora_dropout, seed=config.seed)
        if training and settings.gradient_checkpointing:
            policy.activation_checkpointing_enable({"use_reentrant": False})
        return policy
    return _checked(config, resolve(POLICIES, config.policy.kind, "policy.kind").load(path).to(where), path)


def pretrained_policy(config: Config) -> Policy:
    """The policy of `policy.pretrained` as it is: in the dtype it was saved in, without adapters, on the CPU."""
    path = config.policy.pretrained
    if config.policy.kind == "openvla_oft":
        return _openvla(config, path, None, torch.device("cpu"))
    return _checked(config, resolve(POLICIES, config.policy.kind, "policy.kind").load(path), path)


def _openvla(config: Config, path: str, dtype: torch.dtype | None, device: torch.device) -> Any:
    settings = config.policy.openvla
    changes: dict[str, Any] = {
        "num_actions_chunk": config.rollout.chunk_length,
        "action_dim": environment_facts(config.environment).action_dim,
        "image_steps": settings.image_steps,
        "compute_dtype": settings.compute_dtype,
    }
    if settings.unnorm_key:
        changes["unnorm_key"] = settings.unnorm_key
    policy = resolve(POLICIES, "openvla_oft", "policy.kind").load(path, dtype, device, **changes).eval()
    if settings.unnorm_key:
        _ = policy.statistics  # raises where the folder has none of this name
    return policy


def _checked(config: Config, policy: Any, path: str) -> Policy:
    """Raises ConfigError for a policy of another environment, another chunk or other sizes."""
    if config.policy.kind == "tiny":
        refuse_ignored(config.policy.network, policy.config.to_dict(), "policy.network", path)
    facts = environment_facts(config.environment)
    for key, own, wanted in (
        ("rollout.chunk_length", policy.chunk_length, config.rollout.chunk_length),
        ("the action dimensions of environment.kind", policy.action_dim, facts.action_dim),
    ):
        if own != wanted:
            raise ConfigError(f"{key}={wanted}, the policy in {path} was made for {own}; change policy.pretrained")
    return policy


# -- world models and reward models ------------------------------------------------------------------------------


def load_world_model(config: Config, path: str, *, device: torch.device | str | None = None) -> WorldModel:
    """The world model that a run saved in `path`; the simulator needs no files."""
    cls = resolve(WORLD_MODELS, config.world_model.kind, "world_model.kind")
    if config.world_model.kind == "simulator":
        return cls(lambda: make_environment(config.environment), config.rollout.chunk_length)
    from wmpo_ray.world_models.loading import place_world_model

    where = torch.device(device) if device else process_device(config.cluster.device)
    return place_world_model(cls.load(path), config, where)


def load_reward_model(config: Config, path: str, *, device: torch.device | str | None = None) -> RewardModel:
    """The reward model that a run saved in `path`, with its threshold."""
    model = resolve(REWARD_MODELS, config.reward.kind, "reward.kind").load(path)
    model.network.to(torch.device(device) if device else process_device(config.cluster.device))
    return model


def pretrained_reward_model(config: Config) -> RewardModel:
    """The reward model of `reward.pretrained` on the CPU. Raises ConfigError for settings that its weights contradict."""
    path = config.reward.pretrained
    model = resolve(REWARD_MODELS, config.reward.kind, "reward.kind").load(path)
    own = model.network.config
    sizes = {
        "hidden_size": own.hidden_size,
        "num_layers": own.num_hidden_layers,
        "num_heads": own.num_attention_heads,
        "mlp_ratio": own.intermediate_size / own.hidden_size,
        "patch_size": own.patch_size,
        "tubelet_size": own.tubelet_size,
    }
    refuse_ignored(config.reward.network, sizes, "reward.network", path)
    if model.clip_length != config.reward.clip_length:
        raise ConfigError(
            f"reward.clip_length={config.reward.clip_length}: the reward model in {path} judges clips of "
            f"{model.clip_length} frames; set reward.clip_length={model.clip_length}"
        )
    return model
