"""What the recipe of a run is called, which stages it has, and what each of its rounds is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from wmpo_ray.report.run_data import RunData, mapping
from wmpo_ray.runs.round_folders import label_of

RECORDED = ("dpo", "bc-real", "bc-expert")  # recipes that learn from recorded episodes
_LABEL = re.compile(r"(.+)-([2-9]|[1-9]\d{1,3})")
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
    "bc-expert": RecipeName("Behaviour cloning of more demonstrations", "Expert BC", "Expert BC policy"),
    "pretrain": RecipeName("Pretraining of a world model", "Pretraining", "no policy"),
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
    return has_stage(run, IMAGINES) or mapping(run.summary, "recipe").get("kind") not in RECORDED


def num_rounds(run: RunData) -> int:
    """Rounds of the recipe, counted by the stages `optimize`, `optimize-2`, `optimize-3` and so on."""
    return max(1, sum(name == "optimize" or name.startswith("optimize-") for name in run.stages))


def rounds_note(run: RunData) -> str | None:
    """One sentence where curves of round 1 stand for a run of several; None where there is only one."""
    rounds = num_rounds(run)
    if rounds == 1:
        return None
    return (
        f"The curves and models shown here are of round 1 of {rounds}; "
        f"the result compares the first base policy with the policy of round {rounds}."
    )


def split_label(label: str) -> tuple[str, int]:
    """(stage, round) of a label such as "optimize-2"."""
    match = _LABEL.fullmatch(label)
    return (match[1], int(match[2])) if match else (label, 1)


def rounds_of(run: RunData) -> list[RunData]:
    """Each round as a run of its own, which begins with the policy of the round before; the run itself if it has one."""
    rounds = [run, *run.later]
    return [_round_of(run, one) for one in rounds] if num_rounds(run) > 1 or run.later else [run]


def left_out_tasks(summary: Mapping[str, Any]) -> dict[str, str]:
    """The tasks that the newest gate has left out, and why."""
    gates = [stage for label, stage in mapping(summary, "stages").items() if split_label(label)[0] == "gate"]
    return {name: str(why) for name, why in mapping(gates[-1] if gates else {}, "metrics", "left_out").items()}


def left_out_sentence(summary: Mapping[str, Any]) -> str:
    """That the result is also of tasks which the policy was not trained on; "" where there are none."""
    names = list(left_out_tasks(summary))
    if not names:
        return ""
    which = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"The gate left {which} out: nothing was learned there, and these starts count all the same."


def newest_round(run: RunData) -> RunData:
    """The last round that has logged an update."""
    return next((one for one in reversed(rounds_of(run)) if one.metrics), rounds_of(run)[0])


def _round_of(run: RunData, own: RunData) -> RunData:
    """The summary of a round: its stages under their plain names, and success before and after it."""
    number, stages = own.round, mapping(run.summary, "stages")
    labels = {name: label for label in run.stages for name, round in [split_label(label)] if round == number}
    before = mapping(stages, label_of("evaluate", number - 1), "metrics", "success") if number > 1 else {}
    result = {
        "base_success": before or (mapping(run.summary, "result", "base_success") if number == 1 else {}),
        "final_success": mapping(stages, label_of("evaluate", number), "metrics", "success"),
    }
    summary = {
        **run.summary,
        "recipe": {**mapping(run.summary, "recipe"), "stages": list(labels)},
        "stages": {name: stages[label] for name, label in labels.items() if label in stages},
        "result": result,
    }
    return replace(own, summary=summary, later=[])
