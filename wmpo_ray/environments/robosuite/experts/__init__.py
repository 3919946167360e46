"""Scripted experts for tasks of robosuite and MimicGen: `expert = make_expert(task)`, `expert.reset(env)`, `expert.act()`."""

from __future__ import annotations

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.section import shown
from wmpo_ray.environments.robosuite.experts.assembly import ThreePieceAssemblyExpert
from wmpo_ray.environments.robosuite.experts.coffee import CoffeeExpert
from wmpo_ray.environments.robosuite.experts.expert import Expert
from wmpo_ray.environments.robosuite.experts.lift import LiftExpert
from wmpo_ray.environments.robosuite.experts.square import SquareExpert
from wmpo_ray.environments.robosuite.experts.stack import StackExpert, StackThreeExpert

EXPERTS: dict[str, type[Expert]] = {
    "Lift": LiftExpert,
    "Stack": StackExpert,
    "NutAssemblySquare": SquareExpert,
    "Square_D0": SquareExpert,
    "StackThree_D0": StackThreeExpert,
    "Coffee_D0": CoffeeExpert,
    "ThreePieceAssembly_D0": ThreePieceAssemblyExpert,
}


def has_expert(task: str) -> bool:
    """Whether a task of robosuite or MimicGen, by the name that it is registered with, has an expert."""
    return task in EXPERTS


def make_expert(task: str) -> Expert:
    """The expert of a task, for one scene. Raises ConfigError for a task without one."""
    if task not in EXPERTS:
        raise ConfigError(f"environment.task={shown(task)}: it has no expert; tasks with one are {', '.join(EXPERTS)}")
    return EXPERTS[task]()
