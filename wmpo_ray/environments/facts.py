"""What is known of an environment without making it: a plan, or the loading of a model, needs no simulator."""

from __future__ import annotations

from typing import NamedTuple

from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown
from wmpo_ray.environments.layout import FrameLayout
from wmpo_ray.kinds import ENVIRONMENTS


class EnvironmentFacts(NamedTuple):
    frame_shape: tuple[int, int, int]  # H, W, 3
    action_dim: int
    instructions: tuple[str, ...]  # every one that an episode may have
    layout: FrameLayout = FrameLayout()  # what its frames show, and which changes of a scene leave its task the same


def environment_facts(config: EnvironmentConfig) -> EnvironmentFacts:
    """Raises ConfigError for a kind that nothing is known of, and for tasks whose frames or actions differ."""
    kind = ENVIRONMENTS.find(config.kind)
    if not config.task_names:
        return kind.facts(config)
    each = [kind.facts(section) for section in config.variants.values()]
    first, texts = each[0], tuple(dict.fromkeys(text for facts in each for text in facts.instructions))
    for name, facts in zip(config.task_names, each, strict=True):
        if (facts.frame_shape, facts.action_dim) != (first.frame_shape, first.action_dim):
            raise ConfigError(
                f"environment.task_names = {shown(config.task_names)}: {name} has frames {facts.frame_shape} and actions of "
                f"{facts.action_dim} dimensions, {config.task_names[0]} has {first.frame_shape} and {first.action_dim}; remove one"
            )
    alike = all(facts.layout == first.layout for facts in each)
    return EnvironmentFacts(first.frame_shape, first.action_dim, texts, first.layout if alike else FrameLayout())
