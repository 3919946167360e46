"""The kind `simulator`: the real environment in the place of a world model, which has no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from wmpo_ray.config.models import WorldModelConfig, WorldModelTrainingConfig
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.kinds import ENVIRONMENTS
from wmpo_ray.world_models.world_model_kind import WorldModelKind

if TYPE_CHECKING:  # a configuration is read without torch
    import torch

    from wmpo_ray.core.interfaces import World


class SimulatorConfig(WorldModelConfig):
    kind: Literal["simulator"] = "simulator"

    is_learned: ClassVar[bool] = False

    @property
    def pretrained(self) -> str:
        return ""

    @property
    def alignment(self) -> WorldModelTrainingConfig:
        return WorldModelTrainingConfig(steps=0)


class SimulatorKind(WorldModelKind):
    section = SimulatorConfig

    def begin(self, config: Config, pretrained: str, seed: int) -> Any:
        raise ConfigError('world_model.kind="simulator" has no weights to begin with')

    def load(self, config: Config, path: str, device: torch.device) -> World:
        """`path` and `device` are not used: a simulator has no files and no network."""
        from wmpo_ray.environments.environment_world import EnvironmentWorld
        from wmpo_ray.environments.several_tasks import make_several

        own, make = config.environment, ENVIRONMENTS.find(config.environment.kind).make
        environment = make_several(own, make) if own.task_names else make(own)
        return EnvironmentWorld(environment, config.rollout.chunk_length)
