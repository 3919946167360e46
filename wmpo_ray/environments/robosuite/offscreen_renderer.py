"""Pictures of robosuite's scenes from a camera of the task."""

from __future__ import annotations

from typing import Any

import numpy as np

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown
from wmpo_ray.environments.robosuite.robosuite_settings import RobosuiteConfig
from wmpo_ray.environments.robosuite.simulator import Simulator
from wmpo_ray.environments.simulators.canvas import Canvas, fixed_camera

VISUAL_GROUP = 1  # of geoms: robosuite's visual meshes; 0 holds the shapes that collide


class OffscreenRenderer(Canvas):
    """Draws square pictures. Raises ConfigError for a camera that the task does not have."""

    def __init__(self, simulator: Simulator, config: RobosuiteConfig):
        simulator.model.vis.quality.offsamples = config.multisampling
        self._simulator = simulator
        self._camera = fixed_camera(_find_camera(simulator.model, config.camera))
        super().__init__(
            simulator.model,
            config.image_size,
            config.image_size,
            shadows=config.shadows,
            reflections=config.reflections,
            groups=(VISUAL_GROUP,),
        )

    def render(self) -> np.ndarray:
        """The scene as it was refreshed, [H, W, 3] uint8."""
        return self.draw(self._simulator.data, self._camera)


def _find_camera(model: Any, name: str) -> int:
    known = [model.camera(i).name for i in range(model.ncam)]
    if name not in known:
        raise ConfigError(f"environment.camera={shown(name)}: the cameras of this task are {', '.join(known)}")
    return known.index(name)
