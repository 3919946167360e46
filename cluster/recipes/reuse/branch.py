"""A new run that takes over another's training where it stands and goes on with other settings.

The settings of the updates so far become the schedule of the new run (`schedule.earlier`), which is part of what its
`optimize` is made from. So a branch never passes for a run that had its present settings from the start, it ends with
the bits of a run that follows its schedule from the start, and it is resumed as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from cluster.recipes.optimize import OPTIMIZE
from cluster.recipes.reuse.fork import SETTINGS, Inherited, check_places, copy, fill, hold, inherit
from cluster.recipes.stage import MadeFrom, Step, is_among, made_from, settings_of
from wmpo_ray.config.loading import overridden
from wmpo_ray.config.run import Config
from wmpo_ray.config.stretches import EARLIER, changed_on_the_way, refuse_fixed
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.runs.folder import RunFolder

UPDATES = "updates"  # of the training that was taken over, in the note of where a run is from


def branch_run(source: Path, out: Path, overrides: Sequence[str] = (), *, replace: bool = False) -> int:
    """Make the folder `out` from the run in `source`, whose `optimize` is done; returns the number of updates taken over.

    `replace`: a run that is in `out` gives way to the new one, in one step. Raises UserError where `source` is no such
    run or one of them is in use, and for settings that cannot change between two updates: then nothing has been made.
    """
    with ExitStack() as until_done:
        if not replace:
            check_places(source, out)
        elif out.is_dir():
            hold(out, until_done)
        hold(source, until_done)
        run = RunFolder(source)
        step = step_to_branch(run)
        old = run.config
        config = changed_on_the_way(old, overridden(old, overrides))
        steps = inherit(run, config)
        wanted = check_changes(run, config, step, steps)
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(out) as partial:
            fill(partial, run, config, steps)
            take_over(partial, run, config, step, wanted)
    return old.training.num_updates


def step_to_branch(run: RunFolder) -> Step:
    """The step `optimize`. Raises UserError where there is not one, or it has not been done with the run's settings."""
    found = [each for each in inherit(run, run.config) if each.step.stage.run is OPTIMIZE.run]
    if len(found) != 1:
        raise UserError(
            f'{run.path}: a branch needs one stage optimize that learns from rollouts; the recipe "{run.config.recipe.kind}" '
            f"of {run.config.recipe.rounds} rounds has {len(found)}"
        )
    if not found[0].is_kept or found[0].reason:
        raise UserError(
            f"{run.path}: optimize is not done with the run's settings ({found[0].reason}); finish it first: a branch "
            "begins where it ended"
        )
    return found[0].step


def check_changes(run: RunFolder, config: Config, step: Step, steps: Sequence[Inherited]) -> MadeFrom:
    """What `optimize` will be made from. Raises UserError for changes of more than what one update differs by."""
    results: dict[str, str] = {}
    for each in steps:
        if each.label == step.label:
            break
        if not each.is_kept or each.reason:
            raise UserError(
                f"{each.label} would be made from other settings ({each.reason}); a branch changes those of optimize alone"
            )
        results[each.label] = made_from(each.step, config, results).result
    before, after = settings_of(step.stage, run.config), settings_of(step.stage, config)
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    refuse_fixed([key for key in changed if not is_among(key, (EARLIER, step.stage.extent))], config, str(run.path))
    return made_from(step, config, results)


def take_over(partial: Path, run: RunFolder, config: Config, step: Step, wanted: MadeFrom) -> None:
    """Copy the state of `optimize`, and note that it has begun, unless it goes further with the same settings."""
    with RunFolder.open(partial, config) as folder:
        if folder.record(step.label) is None:
            for pattern in step.stage.state:
                for path in sorted(run.path.glob(pattern)):
                    copy(path, partial / path.relative_to(run.path))
            folder.begin(step.label, wanted._asdict())
        folder.note_origin({**folder.summary["forked_from"], UPDATES: run.config.training.num_updates})


def updates_taken_over(folder: Path) -> int:
    """By the run in a folder, when it was branched; 0 of any other."""
    return int(RunFolder(folder).summary.get("forked_from", {}).get(UPDATES, 0)) if (folder / SETTINGS).is_file() else 0
