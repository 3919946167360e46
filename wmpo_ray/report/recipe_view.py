"""What the recipe of a run is called, which stages it has, and which of its rounds the curves are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from wmpo_ray.report.run_data import RunData, mapping

IMAGINES = "world-model"  # the stage that only recipes with imagined rollouts have


class RecipeName(NamedTuple):
    title: str  # for the top of a page
    short: str  # for titles and narrow columns
    policy: str  # the policy that the recipe leaves


NAMES = {
    "wmpo": RecipeName("World-model policy optimization", "WMPO", "WMPO policy"),
    "grpo-online": RecipeName("GRPO on rollouts in the environment", "GRPO", "GRPO policy"),
    "dpo": RecipeName("Direct preference optimization on real episodes", "DPO", "DPO policy"),
    "bc-real": RecipeName("Behaviour cloning of real successes", "BC", "BC policy"),
    "bc-imagined": RecipeName("Behaviour cloning of imagined successes", "Imagined BC", "Imagined BC policy"),
}


def recipe_name(summary: Mapping[str, Any]) -> RecipeName:
    """The names of the recipe that a summary states; a summary without one counts as WMPO, the default."""
    kind = mapping(summary, "recipe").get("kind")
    if not isinstance(kind, str) or not kind:
        return NAMES["wmpo"]
    return NAMES.get(kind, RecipeName(f"Recipe {kind}", kind, "Trained policy"))


def has_stage(run: RunData, stage: str) -> bool:
    """Whether the recipe has this stage; true as well where no summary states what the recipe has."""
    return not run.stages_planned or stage in run.stages


def has_queue(run: RunData) -> bool:
    """Whether groups of rollouts are judged: recipes on recorded episodes have none."""
    return has_stage(run, IMAGINES) or mapping(run.summary, "recipe").get("kind") not in ("dpo", "bc-real")


def num_rounds(run: RunData) -> int:
    """Rounds of the recipe, counted by the stages `optimize`, `optimize-2`, `optimize-3` and so on."""
    return max(1, sum(name == "optimize" or name.startswith("optimize-") for name in run.stages))


def rounds_note(run: RunData) -> str | None:
    """One sentence on what belongs to which round; None where there is only one."""
    rounds = num_rounds(run)
    if rounds == 1:
        return None
    return (
        f"The curves and models shown here are of round 1 of {rounds}; "
        f"the result compares the first base policy with the policy of round {rounds}."
    )
