"""What is known of an environment without making it: a plan, or the loading of a model, needs no simulator."""

from __future__ import annotations

from typing import NamedTuple

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.environments.layout import FrameLayout
from wmpo_ray.kinds import ENVIRONMENTS


class EnvironmentFacts(NamedTuple):
    frame_shape: tuple[int, int, int]  # H, W, 3
    action_dim: int
    instructions: tuple[str, ...]  # every one that an episode may have
    layout: FrameLayout = FrameLayout()  # what its frames show, and which changes of a scene leave its task the same


def environment_facts(config: EnvironmentConfig) -> EnvironmentFacts:
    """Raises ConfigError for a kind that nothing is known of."""
    return ENVIRONMENTS.find(config.kind).facts(config)
