"""A new run from an old one with other settings: what does not depend on them is copied, the rest will be run again.

What a stage's record says its result was made from decides, exactly as when a run is resumed. Files are copied, never
shared, so neither run can change the other; where the file system can, copies share blocks until one is written to.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.recipes.recipe_table import steps_of
from cluster.recipes.run_plan import difference, is_within, source_of
from cluster.recipes.simulator_needs import check_simulator_of
from cluster.recipes.stage import MadeFrom, Step, made_from
from wmpo_ray.config.dumping import config_hash, config_to_toml
from wmpo_ray.config.loading import overridden
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_directory, atomic_write
from wmpo_ray.runs.folder import LOCK, SETTINGS, RunFolder
from wmpo_ray.runs.folder_lock import FolderLock, LockedError
from wmpo_ray.runs.round_folders import round_folder

FICLONE = 0x40049409  # of Linux: a copy that shares the blocks of the original


@dataclass(frozen=True)
class Inherited:
    """What becomes of one step. `source`: what a kept result was made from; None: the step will be run."""

    step: Step
    source: MadeFrom | None
    reason: str = ""  # of a step that will be run, or goes further

    @property
    def label(self) -> str:
        return self.step.label

    @property
    def is_kept(self) -> bool:
        return self.source is not None


def fork_run(source: Path, out: Path, overrides: Sequence[str] = ()) -> list[Inherited]:
    """Make the folder `out` from the run in `source` with some settings changed; returns what becomes of each step.

    Raises UserError where `source` is no run or in use, where `out` holds anything, where nothing can be kept, and for
    settings that a stage to come would reject: then nothing has been made.
    """
    check_places(source, out)
    with ExitStack() as until_done:
        hold(source, until_done)
        run = RunFolder(source)
        config = overridden(run.config, overrides)
        steps = inherit(run, config)
        if not any(each.is_kept for each in steps):
            reasons = "; ".join(f"{each.label} ({each.reason})" for each in steps[:2])
            raise UserError(f"nothing of {source} can be kept: {reasons}; begin a run with these settings instead")
        to_run = [each.step for each in steps if not each.is_kept]
        check_simulator_of(config, to_run)
        for step in to_run:
            step.stage.check(config, True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(out) as partial:
            fill(partial, run, config, steps)
    return steps


def check_places(source: Path, out: Path) -> None:
    """Raises UserError for a place where no new run can stand."""
    old, new = source.resolve(), out.resolve()
    if new.is_relative_to(old) or old.is_relative_to(new):
        raise UserError(
            f"--out {out}: a fork stands beside its run {source}, not inside it or around it; choose another"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already; a fork needs a new folder: choose another --out")


def hold(source: Path, until_done: ExitStack) -> None:
    """Keep other processes from changing the run while it is copied; one that nobody can write to needs no lock."""
    if not source.is_dir():
        raise UserError(f"{source} is not the folder of a run: there is no such folder")
    if not (source / LOCK).exists():
        return
    try:
        until_done.enter_context(closing(FolderLock(source / LOCK)))
    except LockedError as error:
        raise UserError(f"{source} is in use by {error}; fork it when it has stopped") from error
    except OSError:
        return


def inherit(run: RunFolder, config: Config) -> list[Inherited]:
    """What becomes of every step under a new configuration."""
    results: dict[str, str] = {}
    changed: set[str] = set()
    steps = []
    for step in steps_of(config):
        wanted, record = made_from(step, config, results), run.record(step.label)
        results[step.label] = wanted.result
        if record is not None and "made_from" not in record:
            steps.append(Inherited(step, None, "made by an earlier version; resume that run once"))
        elif (old := source_of(record)) is None:
            steps.append(Inherited(step, None, "not done"))
        elif old.key == wanted.key and (old.extent == wanted.extent or goes_further(step, old, wanted)):
            reason = "" if old.extent == wanted.extent else difference(step, old, wanted, changed)
            steps.append(Inherited(step, old, reason))
        else:
            steps.append(Inherited(step, None, difference(step, old, wanted, changed)))
        if not steps[-1].is_kept or steps[-1].reason:
            changed.add(step.label)
    return steps


def goes_further(step: Step, old: MadeFrom, wanted: MadeFrom) -> bool:
    """Whether the stage continues from this result."""
    return step.stage.keeps_state and is_within(old, wanted)


def fill(partial: Path, run: RunFolder, config: Config, steps: Sequence[Inherited]) -> None:
    """Write a whole run folder: settings, records and files of what is kept."""
    origin = {"folder": str(run.path.resolve()), "config_hash": config_hash(run.config)}
    kept = [each for each in steps if each.is_kept]
    with RunFolder.open(partial, config) as folder:
        folder.accept(config, [each.label for each in steps])
        for each in kept:
            for path in files_of(run, each.step):
                copy(path, partial / path.relative_to(run.path))
            record: dict[str, Any] = run.record(each.label) or {}
            folder.finish(each.label, record["seconds"], record["metrics"], record["made_from"])
        folder.note_origin(origin | {"kept": [each.label for each in kept]})
        result = run.summary.get("result")
        if result and all(each.is_kept and not each.reason for each in steps):
            folder.set_result(result["base_success"], result["final_success"])
    atomic_write(partial / SETTINGS, config_to_toml(config))


def files_of(run: RunFolder, step: Step) -> Iterator[Path]:
    """The result of a step, the curves of its trainings, and the state that it keeps."""
    root, stage = round_folder(run.path, step.round), step.stage
    curves = [f"tensorboard/{Path(name).stem}" for name in stage.makes if name.startswith("curves/")]
    patterns = [*stage.makes, *curves, *(stage.state if stage.keeps_state else ())]
    for pattern in patterns:
        yield from sorted(root.glob(pattern))


def copy(source: Path, target: Path) -> None:
    """A file or a folder, as one of its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_copy_file, dirs_exist_ok=True)
    else:
        _copy_file(source, target)


def _copy_file(source: str | Path, target: str | Path) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        except OSError:  # another file system, or one without shared blocks
            shutil.copyfileobj(old, new, 2**20)
