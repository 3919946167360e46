"""Which augmentation the trainings of a run use: what its environment allows, as far as the settings do not differ."""

from __future__ import annotations

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.layout import FrameLayout, Mirror, Shift


def augmentation_of(config: Config) -> FrameLayout:
    """The views of the environment with the mirror and the shifts to use.

    Raises ConfigError for settings that the environment's frames or actions contradict.
    """
    facts, wanted = environment_facts(config.environment), config.augmentation
    try:
        facts.layout.check(facts.frame_shape, facts.action_dim)
    except ValueError as error:
        raise ConfigError(
            f"environment.kind = {shown(config.environment.kind)}: its layout is wrong: {error}"
        ) from None
    return facts.layout._replace(
        mirror=_mirror(config),
        shifts=() if wanted.shift == 0 else _shifts(config),
        pixel_weights=facts.layout.pixel_weights if wanted.pixel_weights == "auto" else (),
    )


def is_mirrored(config: Config) -> bool:
    return _mirror(config) is not None


def _mirror(config: Config) -> Mirror | None:
    wanted, facts = config.augmentation, environment_facts(config.environment)
    if wanted.mirror == "auto":
        return facts.layout.mirror
    if wanted.mirror == "none":
        return None
    if facts.layout.num_views > 1:
        raise ConfigError(
            f"augmentation.mirror = {shown(wanted.mirror)}: frames of environment.kind = {shown(config.environment.kind)} "
            f'show {facts.layout.num_views} views, which no single axis mirrors; set it to "auto" or "none"'
        )
    if beyond := [index for index in wanted.negated_actions if index >= facts.action_dim]:
        raise ConfigError(
            f"augmentation.negated_actions = {list(wanted.negated_actions)}: actions of environment.kind = "
            f"{shown(config.environment.kind)} have the dimensions 0 to {facts.action_dim - 1}, and {beyond[0]} is none; "
            "change augmentation.negated_actions"
        )
    return Mirror((wanted.mirror,), wanted.negated_actions)


def _shifts(config: Config) -> tuple[Shift, ...]:
    wanted, shifts = config.augmentation.shift, environment_facts(config.environment).layout.shifts
    if wanted == "auto":
        return shifts
    if not shifts:
        raise ConfigError(
            f"augmentation.shift = {wanted}: environment.kind = {shown(config.environment.kind)} does not say what moving "
            'its scene does to an action; set it to "auto" or 0'
        )
    return tuple(shift._replace(max_pixels=wanted) for shift in shifts)
