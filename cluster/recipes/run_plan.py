"""Decides which steps of a run are done, which resume from a checkpoint, and which changed settings force to repeat.

A step's record in the summary contains what its result was made from (`MadeFrom`); an unfinished step has a note of the
same kind. Comparing them with the current configuration gives the action for each step.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.recipes.recipe_table import steps_of
from cluster.recipes.rounds import round_folder
from cluster.recipes.stage import MadeFrom, Step, made_from
from wmpo_ray.config.dumping import config_differences
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import shown
from wmpo_ray.runs.folder import RunFolder

IDENTITY = ("name", "seed")  # a change makes it a different run
MOST_SHOWN = 4


class Action(enum.Enum):
    """What to do with a step."""

    KEEP = "done before"
    BEGIN = "not begun"
    RESUME = "stopped in the middle"
    EXTEND = "goes further"
    REDO = "made from other settings"

    @property
    def changes_results(self) -> bool:
        """Whether an existing result will be replaced."""
        return self in (Action.EXTEND, Action.REDO)


@dataclass(frozen=True)
class Planned:
    step: Step
    action: Action
    source: MadeFrom
    reason: str = ""  # of EXTEND and REDO

    @property
    def label(self) -> str:
        return self.step.label


def plan_run(folder: RunFolder, config: Config, steps: Sequence[Step]) -> list[Planned]:
    """One entry for each step, in order. Raises UserError for the folder of another run."""
    check_identity(folder, config)
    adopt_earlier(folder)
    check_rounds(folder, config)
    plan: list[Planned] = []
    results: dict[str, str] = {}
    changed: set[str] = set()
    for step in steps:
        wanted = made_from(step, config, results)
        results[step.label] = wanted.result
        plan.append(_planned(folder, step, wanted, changed))
        if plan[-1].action.changes_results:
            changed.add(step.label)
    return plan


def adopt_earlier(folder: RunFolder) -> None:
    """Record what results were made from, by `config.json`, if an earlier version of the program did not."""
    config = folder.config
    results: dict[str, str] = {}
    for step in steps_of(config):
        source, record = made_from(step, config, results), folder.record(step.label)
        results[step.label] = source.result
        if record is not None and "made_from" not in record:
            folder.note_source(step.label, source._asdict())
        elif record is None and folder.begun(step.label) is None and has_state(folder, step):
            folder.begin(step.label, source._asdict())


def check_identity(folder: RunFolder, config: Config) -> None:
    """Raises UserError if the folder holds a run of another name or seed, of which nothing could be kept."""
    lines = config_differences(folder.config, config)
    other = [line for line in lines if line.partition(":")[0] in IDENTITY]
    if other:
        raise UserError(
            f"{folder.path} holds another run: {'; '.join(other)}; choose another folder with --out, or that run's "
            "name and seed"
        )


def check_rounds(folder: RunFolder, config: Config) -> None:
    """Raises UserError if the folder has begun a later round than the last one of this config."""
    wanted, begun = config.recipe.rounds, 0
    for step in steps_of(folder.config):
        if folder.record(step.label) or folder.begun(step.label):
            begun = max(begun, step.round)
    if begun > wanted:
        raise UserError(
            f"recipe.rounds={wanted}: {folder.path} has begun round {begun}, and its result is that of the last one; set "
            f"recipe.rounds to {begun} or more, or choose another folder with --out"
        )


def _planned(folder: RunFolder, step: Step, wanted: MadeFrom, changed: set[str]) -> Planned:
    record, begun = source_of(folder.record(step.label)), source_of(folder.begun(step.label))
    if record is not None and (record.key, record.extent) == (wanted.key, wanted.extent):
        return Planned(step, Action.KEEP, wanted)
    latest = record or begun
    if latest is None:
        return Planned(step, Action.BEGIN, wanted)
    reason = difference(step, latest, wanted, changed)
    if begun is not None:
        is_clear = bool((folder.begun(step.label) or {}).get("is_clear"))
        is_same = begun.key == wanted.key and is_within(begun, wanted) and is_clear
        return Planned(step, Action.RESUME if is_same else Action.REDO, wanted, reason)
    is_longer = latest.key == wanted.key and is_within(latest, wanted)
    return Planned(step, Action.EXTEND if is_longer else Action.REDO, wanted, reason)


def source_of(entry: dict[str, Any] | None) -> MadeFrom | None:
    """The `MadeFrom` of a record or a note. Raises UserError if it is damaged."""
    if entry is None:
        return None
    try:
        return MadeFrom(**entry["made_from"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"summary.json is damaged: what a stage was made from is unreadable ({error}); delete it to run every stage "
            "again"
        ) from error


def is_within(course: MadeFrom, wanted: MadeFrom) -> bool:
    """Whether an earlier extent is at most the wanted one."""
    return course.extent is None or (wanted.extent is not None and course.extent <= wanted.extent)


def difference(step: Step, old: MadeFrom, new: MadeFrom, changed: set[str]) -> str:
    """Why a result cannot be kept: changed settings with both values, or changed steps that it depends on."""
    reasons = []
    if old.extent != new.extent:
        reasons.append(f"{new.extent_key}: {old.extent} -> {new.extent}")
    for key in {**new.settings, **old.settings}:
        before, after = old.settings.get(key), new.settings.get(key)
        if key not in new.settings:
            reasons.append(f"without {key} = {shown(before)}")
        elif before != after:
            reasons.append(f"{key}: {shown(before)} -> {shown(after)}")
    reasons += [f"follows {name}" for name in new.needs if old.needs.get(name) != new.needs[name] or name in changed]
    more = len(reasons) - MOST_SHOWN
    text = ", ".join(reasons[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return text or "made by an earlier version"


def has_state(folder: RunFolder, step: Step) -> bool:
    """Whether there is a checkpoint that an unfinished step could resume from."""
    root = round_folder(folder.path, step.round)
    patterns = [name for name in step.stage.state if name.startswith("checkpoints/")]
    found = [path for name in patterns for path in root.glob(name)]
    return any(path.name.startswith("step-") or any(path.glob("step-*")) for path in found)


def check_resume(folder: RunFolder, plan: Sequence[Planned], resume: bool, redo: bool) -> None:
    """Raises UserError if a step would be resumed or redone without --resume."""
    redone = [f"{each.label} ({each.reason})" for each in plan if each.action.changes_results]
    stopped = next((each.label for each in plan if each.action is Action.RESUME), "")
    if redone and not redo:
        raise UserError(
            f"{folder.path} holds a run with other settings; with --resume these stages would be redone, and the others "
            f"kept: {'; '.join(redone)}. Add --resume, or choose another folder with --out"
        )
    if stopped and not resume:
        raise UserError(
            f"{folder.path}: its stage {stopped} stopped in the middle; "
            "add --resume to go on from its last checkpoint or choose another --out"
        )


def check_later(folder: RunFolder, later: Sequence[Planned], redo: bool) -> None:
    """Raises UserError if stages that are not asked for hold results that other settings would outdate.

    Without this the folder would claim the new settings for results that the old ones made.
    """
    outdated = [f"{each.label} ({each.reason})" for each in later if each.action.changes_results]
    if outdated and not redo:
        raise UserError(
            f"{folder.path} holds results of other settings: {'; '.join(outdated)}. Give the settings that the run has, "
            "add --resume to change them (these stages are redone when they are next run), or choose another folder "
            "with --out"
        )
