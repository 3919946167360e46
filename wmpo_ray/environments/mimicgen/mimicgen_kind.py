"""The kind `mimicgen`: four tasks of NVIDIA's MimicGen, from a checkout that the user brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.mimicgen.mimicgen_settings import MimicGenConfig
from wmpo_ray.environments.robosuite.robosuite_kind import RobosuiteKind

if TYPE_CHECKING:  # a configuration is read without torch
    from wmpo_ray.environments.mimicgen.mimicgen_environment import MimicGenEnvironment


class MimicGenKind(RobosuiteKind):
    section = MimicGenConfig  # type: ignore[assignment]  # a section of its own, with the same settings and more

    def make(self, config: EnvironmentConfig) -> MimicGenEnvironment:
        from wmpo_ray.environments.mimicgen.mimicgen_environment import MimicGenEnvironment

        return MimicGenEnvironment.from_config(config)
