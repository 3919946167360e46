"""The kind `diffusion`: our own world models and the published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmpo_ray.config.run import Config
from wmpo_ray.core.plan_types import WorldBlueprint
from wmpo_ray.environments.facts import EnvironmentFacts
from wmpo_ray.world_models.diffusion_settings import DiffusionConfig
from wmpo_ray.world_models.world_model_kind import WorldModelKind

if TYPE_CHECKING:  # a configuration is read without torch
    import torch

    from wmpo_ray.core.interfaces import World
    from wmpo_ray.world_models.diffusion import DiffusionWorldModel


class DiffusionKind(WorldModelKind):
    section = DiffusionConfig

    def begin(self, config: Config, pretrained: str, seed: int) -> DiffusionWorldModel:
        from wmpo_ray.world_models.pretrained_world import begin_world_model

        return begin_world_model(config, pretrained, seed)

    def load(self, config: Config, path: str, device: torch.device) -> World:
        from wmpo_ray.world_models.diffusion import DiffusionWorldModel
        from wmpo_ray.world_models.pretrained_world import place_world_model

        return place_world_model(DiffusionWorldModel.load(path), config, device)

    def blueprint(self, config: Config, facts: EnvironmentFacts, pretrained: str) -> WorldBlueprint:
        from wmpo_ray.world_models.world_blueprint import world_blueprint

        return world_blueprint(config, facts, pretrained)
