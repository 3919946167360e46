"""What a kind of policy offers. It is registered in `wmpo_ray/kinds.py`, or by the entry point of a package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from wmpo_ray.config.models import PolicyConfig
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.plan_types import Blueprint
from wmpo_ray.environments.facts import EnvironmentFacts

if TYPE_CHECKING:  # a configuration is read without torch
    import torch

    from wmpo_ray.core.interfaces import Policy
    from wmpo_ray.core.types import Episodes


class PolicyKind(ABC):
    """`config.policy` is always a `section` of the kind that is asked."""

    section: ClassVar[type[PolicyConfig]]
    libraries: ClassVar[tuple[str, ...]] = ()  # modules that `load` imports

    @abstractmethod
    def create(self, config: Config, demos: Episodes) -> Policy:
        """A fresh network on the CPU for cloning the demonstrations; torch's generator is seeded already.

        Raises ConfigError where the kind has no fresh network.
        """

    @abstractmethod
    def load(self, config: Config, path: str, *, training: bool, device: torch.device) -> Policy:
        """The policy saved in `path`, by a run or another program, with the adapters that the config asks for.

        `training`: to be trained, so with float32 weights. Raises UserError for files that are damaged and ConfigError
        for settings that they contradict.
        """

    def pretrained(self, config: Config) -> Policy:
        """The policy of `policy.pretrained` as it is: in the dtype it was saved in, without adapters, on the CPU."""
        import torch

        return self.load(config, config.policy.pretrained, training=False, device=torch.device("cpu"))

    def blueprint(self, config: Config, facts: EnvironmentFacts) -> Blueprint:
        """What a plan counts. Raises ConfigError where the kind has none."""
        raise ConfigError(f"policy.kind={config.policy.kind!r} has no blueprint, so that no plan can be made of it")

    def problems(self, config: Config, device: torch.device) -> Iterator[str]:
        """What the settings ask for and this machine has not: one line each, with the knob; checked before a run."""
        return iter(())
