"""Scenes of a task of MimicGen: those of robosuite, once MimicGen has registered its tasks there."""

from __future__ import annotations

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.mimicgen.mimicgen_settings import MimicGenConfig
from wmpo_ray.environments.mimicgen.mimicgen_source import load_mimicgen, mimicgen_version
from wmpo_ray.environments.robosuite.robosuite_environment import RobosuiteEnvironment
from wmpo_ray.environments.robosuite.simulator import Simulator


class MimicGenEnvironment(RobosuiteEnvironment):
    """N scenes of one task (implements `wmpo_ray.core.interfaces.AbleEnvironment`); see `RobosuiteEnvironment`."""

    def __init__(self, config: MimicGenConfig):
        super().__init__(config)
        self.checkout = config.checkout

    @classmethod
    def from_config(cls, config: EnvironmentConfig) -> MimicGenEnvironment:
        assert isinstance(config, MimicGenConfig)
        return cls(config)

    def simulator(self) -> Simulator:
        if self._simulator is None:
            load_mimicgen(self.checkout)
        return super().simulator()

    def _identity(self) -> str:
        return f"{super()._identity()}, mimicgen {mimicgen_version()}"
