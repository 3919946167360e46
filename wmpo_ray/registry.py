"""Names to classes. Imports are lazy, so that naming a simulator does not need the others installed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wmpo_ray.config import Config, EnvironmentConfig
from wmpo_ray.errors import ConfigError
from wmpo_ray.interfaces import Environment, Policy, RewardModel, WorldModel

ENVIRONMENTS = {"pocket": "wmpo_ray.environments.pocket:PocketEnvironment"}
POLICIES = {
    "tiny": "wmpo_ray.policies.tiny:TinyPolicy",
    "openvla_oft": "wmpo_ray.policies.openvla_oft:OpenVLAOFTPolicy",
}
WORLD_MODELS = {
    "diffusion": "wmpo_ray.world_models.diffusion:DiffusionWorldModel",
    "simulator": "wmpo_ray.world_models.simulator:SimulatorWorldModel",
}
REWARD_MODELS = {"videomae": "wmpo_ray.reward_models.videomae:VideoMAERewardModel"}


def resolve(table: dict[str, str], kind: str, key: str) -> Any:
    """The class behind a name; ConfigError with the known names and the config key otherwise."""
    if kind not in table:
        raise ConfigError(f"{key}={kind!r} is unknown; known are {sorted(table)}")
    module, name = table[kind].split(":")
    return getattr(import_module(module), name)


def check_kinds(config: Config) -> None:
    """ConfigError for a kind that nothing is registered for, before any work is done."""
    for table, kind, key in (
        (ENVIRONMENTS, config.environment.kind, "environment.kind"),
        (POLICIES, config.policy.kind, "policy.kind"),
        (WORLD_MODELS, config.world_model.kind, "world_model.kind"),
        (REWARD_MODELS, config.reward.kind, "reward.kind"),
    ):
        resolve(table, kind, key)


def make_environment(config: EnvironmentConfig) -> Environment:
    cls = resolve(ENVIRONMENTS, config.kind, "environment.kind")
    return cls(horizon=config.horizon, disruption=config.disruption)


def load_policy(kind: str, path: str) -> Policy:
    return resolve(POLICIES, kind, "policy.kind").load(path)


def load_world_model(config: Config, path: str) -> WorldModel:
    """The world model saved in `path`; the simulator needs no files."""
    cls = resolve(WORLD_MODELS, config.world_model.kind, "world_model.kind")
    if config.world_model.kind == "simulator":
        return cls(lambda: make_environment(config.environment), config.rollout.chunk_length)
    return cls.load(path)


def load_reward_model(kind: str, path: str) -> RewardModel:
    return resolve(REWARD_MODELS, kind, "reward.kind").load(path)
