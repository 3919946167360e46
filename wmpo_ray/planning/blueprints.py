"""Models without values, as the kinds that a configuration chooses would build them."""

from __future__ import annotations

from wmpo_ray.config.run import Config
from wmpo_ray.core.plan_types import Blueprint, WorldBlueprint
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.kinds import POLICIES, REWARD_MODELS, WORLD_MODELS


def policy_blueprint(config: Config, facts: EnvironmentFacts) -> Blueprint:
    """Raises ConfigError for a kind that no plan can be made of."""
    return POLICIES.find(config.policy.kind).blueprint(config, facts)


def world_blueprint(config: Config, facts: EnvironmentFacts, pretrained: str) -> WorldBlueprint | None:
    """None for a world model that costs nothing. Raises UserError where `pretrained` is missing and cannot be guessed."""
    return WORLD_MODELS.find(config.world_model.kind).blueprint(config, facts, pretrained)


def reward_blueprint(config: Config, facts: EnvironmentFacts) -> Blueprint:
    """The classifier of one clip. Raises ConfigError for a kind that no plan can be made of."""
    return REWARD_MODELS.find(config.reward.kind).blueprint(config, facts)
