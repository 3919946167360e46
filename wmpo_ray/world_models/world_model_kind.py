"""What a kind of world model offers. It is registered in `wmpo_ray/kinds.py`, or by the entry point of a package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from wmpo_ray.config.models import WorldModelConfig
from wmpo_ray.config.run import Config
from wmpo_ray.core.plan_types import WorldBlueprint
from wmpo_ray.environments.facts import EnvironmentFacts

if TYPE_CHECKING:  # a configuration is read without torch
    import torch

    from wmpo_ray.core.interfaces import World


class WorldModelKind(ABC):
    """`config.world_model` is always a `section` of the kind that is asked.

    The section of a kind with weights has the fields `pretrained` and `alignment`; one without has `is_learned` false.
    """

    section: ClassVar[type[WorldModelConfig]]
    libraries: ClassVar[tuple[str, ...]] = ()  # modules that `load` imports

    @abstractmethod
    def begin(self, config: Config, pretrained: str, seed: int) -> Any:
        """What alignment begins with, on the CPU in float32; "": a fresh network. It has `save(path)`.

        Raises ConfigError for settings that the weights of `pretrained` contradict, UserError for damaged files.
        """

    @abstractmethod
    def load(self, config: Config, path: str, device: torch.device) -> World:
        """The world model that a run saved in `path`, where it imagines."""

    def context_frames(self, config: Config, path: str) -> int:
        """The most recent frames that the world model in `path` continues from."""
        return 1

    def blueprint(self, config: Config, facts: EnvironmentFacts, pretrained: str) -> WorldBlueprint | None:
        """What a plan counts; None for a world model that costs nothing."""
        return None

    def problems(self, config: Config, device: torch.device) -> Iterator[str]:
        """What the settings ask for and this machine has not: one line each, with the knob; checked before a run."""
        return iter(())
