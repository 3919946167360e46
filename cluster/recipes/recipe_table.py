"""The recipes: the stages of a run in order, and which of them are repeated in every round.

A new stage is one file in this folder and one entry in a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.recipes.align import WORLD_MODEL
from cluster.recipes.clone import POLICY
from cluster.recipes.clone_demos import CLONE_DEMOS, MORE_DEMOS
from cluster.recipes.collect import COLLECT
from cluster.recipes.demos import DEMOS
from cluster.recipes.evaluate import EVALUATE
from cluster.recipes.gating.gate import GATE
from cluster.recipes.optimize import OPTIMIZE, OPTIMIZE_ONLINE
from cluster.recipes.optimize_on_episodes import OPTIMIZE_ON_EPISODES
from cluster.recipes.pretraining.pretrain import PRETRAIN
from cluster.recipes.rewards import REWARD_MODEL
from cluster.recipes.stage import Stage, Step
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.runs.round_folders import label_of

BASE, FINAL = POLICY.name, OPTIMIZE.name  # the stages that leave the first policy, and the policy of a round


@dataclass(frozen=True)
class Recipe:
    """Stages before the rounds, and in each round. With `pretrain.steps` the stage `pretrain` comes first.

    One of the `optimize` stages determines what the policy of a round learns from; it is evaluated at once.
    """

    once: tuple[Stage, ...]
    repeated: tuple[Stage, ...]


_IMAGINED = (COLLECT, WORLD_MODEL, REWARD_MODEL, GATE, OPTIMIZE, EVALUATE)
_RECORDED = (COLLECT, OPTIMIZE_ON_EPISODES, EVALUATE)

RECIPES = {
    "wmpo": Recipe((DEMOS, POLICY), _IMAGINED),
    "grpo-online": Recipe((DEMOS, POLICY), (COLLECT, OPTIMIZE_ONLINE, EVALUATE)),
    "dpo": Recipe((DEMOS, POLICY), _RECORDED),
    "bc-real": Recipe((DEMOS, POLICY), _RECORDED),
    "bc-imagined": Recipe((DEMOS, POLICY), _IMAGINED),
    "bc-expert": Recipe((DEMOS, POLICY), (MORE_DEMOS, CLONE_DEMOS, EVALUATE)),
    "pretrain": Recipe((), ()),
}


def recipe_of(config: Config) -> Recipe:
    """Raises ConfigError for an unknown recipe, and for settings that do not suit it."""
    if config.recipe.kind not in RECIPES:
        raise ConfigError(f'recipe.kind = "{config.recipe.kind}": known are {", ".join(RECIPES)}; change recipe.kind')
    recipe = RECIPES[config.recipe.kind]
    if config.pretrain.steps:
        if recipe.repeated and WORLD_MODEL not in recipe.repeated:
            raise ConfigError(
                f'pretrain.steps = {config.pretrain.steps}: recipe.kind = "{config.recipe.kind}" has no world model; set '
                "pretrain.steps to 0 or change recipe.kind"
            )
        recipe = Recipe((PRETRAIN, *recipe.once), recipe.repeated)
    elif not recipe.once:
        raise ConfigError(
            f'pretrain.steps = 0: recipe.kind = "{config.recipe.kind}" does nothing else; set pretrain.steps'
        )
    for stage in recipe.repeated:
        stage.suits(config)
    return recipe


def steps_of(config: Config) -> list[Step]:
    """Every stage of every round in the order in which they run."""
    recipe = recipe_of(config)
    several = bool(config.environment.task_names)
    steps = [_step(stage, recipe, 1, several) for stage in recipe.once]
    rounds = range(1, config.recipe.rounds + 1)
    return steps + [_step(stage, recipe, round, several) for round in rounds for stage in recipe.repeated]


def stage_labels(config: Config) -> tuple[str, ...]:
    """The names of the steps, as `wmpo stage` takes them."""
    return tuple(step.label for step in steps_of(config))


def _step(stage: Stage, recipe: Recipe, round: int, several_tasks: bool) -> Step:
    """The stage with the steps whose results it reads."""
    repeated = {each.name for each in recipe.repeated}
    known = {each.name for each in recipe.once} | repeated
    needs = []
    for name in (*stage.needs, *(stage.needs_of_tasks if several_tasks else ())):
        if name not in known:
            continue
        if name == BASE and round > 1:  # the acting policy is that of the previous round
            needs.append(label_of(FINAL, round - 1))
        else:
            needs.append(label_of(name, round) if name in repeated else name)
    if round > 1:
        needs += [label_of(name, round - 1) for name in stage.builds_on if name in known]
    return Step(stage, round, tuple(needs))
