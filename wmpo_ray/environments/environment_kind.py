"""What a kind of environment offers. It is registered in `wmpo_ray/kinds.py`, or by the entry point of a package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.facts import EnvironmentFacts

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.core.interfaces import Environment, Play


class EnvironmentKind(ABC):
    section: ClassVar[type[EnvironmentConfig]]

    @abstractmethod
    def facts(self, config: EnvironmentConfig) -> EnvironmentFacts:
        """Sizes and instructions; needs no simulator."""

    @abstractmethod
    def make(self, config: EnvironmentConfig) -> Environment:
        """The environment. Raises ConfigError where there is no simulator of it."""

    def check(self, config: EnvironmentConfig) -> None:
        """Raises ConfigError where `make` cannot work, before any work is done."""

    def disruptions(self, config: EnvironmentConfig) -> tuple[str, ...]:
        """What `environment.disruption` may be with these settings, besides "none"."""
        return ()

    def play(self, config: EnvironmentConfig, num: int, seed: int) -> Iterator[Play] | None:
        """Undirected episodes of `horizon` steps for pretraining, some at a time; the same for a seed. None: it has none.

        Raises ConfigError where there is no simulator.
        """
        return None
