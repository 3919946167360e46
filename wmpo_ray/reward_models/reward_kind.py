"""What a kind of reward model offers. It is registered in `wmpo_ray/kinds.py`, or by the entry point of a package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from wmpo_ray.config.models import RewardConfig
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.frame_sizes import FrameSize
from wmpo_ray.core.plan_types import Blueprint
from wmpo_ray.environments.facts import EnvironmentFacts

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.core.interfaces import RewardModel


class RewardModelKind(ABC):
    """`config.reward` is always a `section` of the kind that is asked. Models are on the CPU."""

    section: ClassVar[type[RewardConfig]]
    libraries: ClassVar[tuple[str, ...]] = ()  # modules that `load` imports

    @abstractmethod
    def create(self, config: Config, frame_size: FrameSize, instructions: Sequence[str]) -> RewardModel:
        """A fresh network for frames of this size that distinguishes the instructions.

        Raises ConfigError where the kind has no fresh network, or none for such frames.
        """

    @abstractmethod
    def load(self, config: Config, path: str) -> RewardModel:
        """The reward model saved in `path`, by a run or another program, with its threshold.

        Raises UserError for damaged files.
        """

    def pretrained(self, config: Config) -> RewardModel:
        """The reward model of `reward.pretrained`. Raises ConfigError for settings that its weights contradict."""
        return self.load(config, config.reward.pretrained)

    def blueprint(self, config: Config, facts: EnvironmentFacts) -> Blueprint:
        """The classifier of one clip, which a plan counts. Raises ConfigError where the kind has none."""
        raise ConfigError(f"reward.kind={config.reward.kind!r} has no blueprint, so that no plan can be made of it")
