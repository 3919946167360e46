"""The recipes: the stages of a run in order, and which of them are repeated in every round.

A new stage is one file in this folder and one entry in a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.recipes.align import WORLD_MODEL
from cluster.recipes.clone import POLICY
from cluster.recipes.collect import COLLECT
from cluster.recipes.demos import DEMOS
from cluster.recipes.evaluate import EVALUATE
from cluster.recipes.gate import GATE
from cluster.recipes.optimize import OPTIMIZE, OPTIMIZE_ONLINE
from cluster.recipes.optimize_on_episodes import OPTIMIZE_ON_EPISODES
from cluster.recipes.rewards import REWARD_MODEL
from cluster.recipes.stage import Stage, Step
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.runs.round_folders import label_of

BASE, FINAL = POLICY.name, OPTIMIZE.name  # the stages that leave the first policy, and the policy of a round


@dataclass(frozen=True)
class Recipe:
    """Stages before the rounds, in each round, and after the last one.

    The last stage of a round, one of the `optimize` stages, determines what the policy learns from.
    """

    once: tuple[Stage, ...]
    repeated: tuple[Stage, ...]
    at_end: tuple[Stage, ...] = (EVALUATE,)


RECIPES = {
    "wmpo": Recipe((DEMOS, POLICY), (COLLECT, WORLD_MODEL, REWARD_MODEL, GATE, OPTIMIZE)),
    "grpo-online": Recipe((DEMOS, POLICY), (COLLECT, OPTIMIZE_ONLINE)),
    "dpo": Recipe((DEMOS, POLICY), (COLLECT, OPTIMIZE_ON_EPISODES)),
    "bc-real": Recipe((DEMOS, POLICY), (COLLECT, OPTIMIZE_ON_EPISODES)),
    "bc-imagined": Recipe((DEMOS, POLICY), (COLLECT, WORLD_MODEL, REWARD_MODEL, GATE, OPTIMIZE)),
}


def recipe_of(config: Config) -> Recipe:
    """Raises ConfigError for an unknown recipe, and for settings that do not suit it."""
    if config.recipe.kind not in RECIPES:
        raise ConfigError(f'recipe.kind = "{config.recipe.kind}": known are {", ".join(RECIPES)}; change recipe.kind')
    recipe = RECIPES[config.recipe.kind]
    for stage in recipe.repeated:
        stage.suits(config)
    return recipe


def steps_of(config: Config) -> list[Step]:
    """Every stage of every round in the order in which they run."""
    recipe, last = recipe_of(config), config.recipe.rounds
    steps = [_step(stage, recipe, 1, last) for stage in recipe.once]
    steps += [_step(stage, recipe, round, last) for round in range(1, last + 1) for stage in recipe.repeated]
    return steps + [_step(stage, recipe, 1, last) for stage in recipe.at_end]


def stage_labels(config: Config) -> tuple[str, ...]:
    """The names of the steps, as `wmpo stage` takes them."""
    return tuple(step.label for step in steps_of(config))


def _step(stage: Stage, recipe: Recipe, round: int, last: int) -> Step:
    """The stage with the steps whose results it reads."""
    repeated = {each.name for each in recipe.repeated}
    known = {each.name for each in (*recipe.once, *recipe.repeated, *recipe.at_end)}
    reads_all = stage.name not in repeated and stage.name not in {each.name for each in recipe.once}
    needs = []
    for name in stage.needs:
        if name not in known:
            continue
        if name == BASE and round > 1:  # the acting policy is that of the previous round
            needs.append(label_of(FINAL, round - 1))
        elif name in repeated:
            needs.append(label_of(name, last if reads_all else round))
        else:
            needs.append(name)
    if round > 1:
        needs += [label_of(name, round - 1) for name in stage.builds_on if name in known]
    return Step(stage, round, tuple(needs))
