"""The folder of a run: its config, the records of its stages, and a lock against a second process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

from wmpo_ray.config.dumping import config_hash, config_to_json
from wmpo_ray.config.loading import read_config_json
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write, is_leftover, json_clean, remove_directory, remove_leftovers
from wmpo_ray.core.section import check_local
from wmpo_ray.runs.folder_lock import FolderLock, LockedError
from wmpo_ray.runs.machine import machine_name, package_versions
from wmpo_ray.runs.summary_file import SUMMARY, checked_summary

CONFIG, LOCK = "config.json", ".lock"
SETTINGS = "settings.toml"  # of a run that is to be: what `wmpo run` goes on with
SUB_FOLDERS = ("checkpoints", "trajectories", "videos", "models", "outcomes", "report")
REPLACED = "replaced"  # holds the state of results that are being replaced, until the new ones are there
MOVING = ".moving"  # ends the name of such a folder that is not complete


class RunFolder:
    """A run's folder. `RunFolder.open` is for the one process that runs it; `RunFolder(path)` is read-only.

    Raises `UserError` where `path` is no run folder or its summary cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: FolderLock | None = None
        self._summary = checked_summary(path / SUMMARY) if (path / SUMMARY).exists() else {}
        if not (path / CONFIG).exists():
            raise UserError(f"{path} is not the folder of a run: it holds no {CONFIG}")

    @classmethod
    def open(cls, path: Path, config: Config) -> Self:
        """Create or open the folder of a run, and lock it until `close`.

        `config` is that of a new folder; one that is there keeps its own until `accept`. Raises `UserError` for a
        folder that holds other things and one that another process has locked.
        """
        try:
            check_local(str(path), "--out")
        except ValueError as error:
            raise UserError(str(error)) from None
        _refuse_foreign(path)
        with ExitStack() as on_failure:
            try:
                path.mkdir(parents=True, exist_ok=True)
                lock = on_failure.enter_context(closing(FolderLock(path / LOCK)))
            except OSError as error:
                raise UserError(f"{path}: cannot write there ({error.strerror}); choose another --out") from error
            except LockedError as error:
                raise UserError(f"{path} is in use by {error}; wait for it or choose another --out") from error
            _prepare(path, config)
            run = cls(path)
            run._lock = lock
            on_failure.pop_all()
        return run

    @property
    def config(self) -> Config:
        """The config that this folder was made for."""
        return read_config_json(self.path / CONFIG)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def summary(self) -> dict:
        """A copy of the content of summary.json."""
        return json_clean(self._summary)

    def is_done(self, stage: str) -> bool:
        return stage in self._summary.get("stages", {})

    def metrics(self, stage: str) -> dict:
        """The metrics of a finished stage. Raises `UserError` if it is not done."""
        if not self.is_done(stage):
            raise UserError(f"{self.path}: the stage {stage} is not done yet; run it first")
        return dict(self._summary["stages"][stage]["metrics"])

    def record(self, stage: str) -> dict | None:
        """The record of a finished stage; None if it is not done."""
        return self._summary.get("stages", {}).get(stage)

    def begun(self, stage: str) -> dict | None:
        """The note that `begin` made of a stage that has not finished since."""
        return self._summary.get("begun", {}).get(stage)

    def accept(self, config: Config, stages: Sequence[str] = ()) -> None:
        """Use this config from now on. stages: all stages of the run, in order."""
        if self.config != config:
            atomic_write(self.path / CONFIG, config_to_json(config))
        self._write(
            {"config_hash": config_hash(config), "recipe": {"kind": config.recipe.kind, "stages": list(stages)}}
        )

    def begin(self, stage: str, made_from: dict[str, Any], is_clear: bool = True) -> None:
        """Note that a stage has begun, and what its result will be made from.

        is_clear: whether its state folders contain nothing from an earlier attempt.
        """
        note = {"made_from": made_from, "is_clear": is_clear}
        self._write({"begun": {**self._summary.get("begun", {}), stage: note}})

    def finish(self, stage: str, seconds: float, metrics: dict, made_from: dict[str, Any] | None = None) -> None:
        """Record a stage as done, on the disk when this returns."""
        record = {"seconds": seconds, "metrics": metrics} | ({} if made_from is None else {"made_from": made_from})
        begun = {name: note for name, note in self._summary.get("begun", {}).items() if name != stage}
        self._write({"stages": {**self._summary["stages"], stage: record}, "begun": begun})

    def note_source(self, stage: str, made_from: dict[str, Any]) -> None:
        """Add to the record of a stage what its result was made from."""
        record = {**self._summary["stages"][stage], "made_from": made_from}
        self._write({"stages": {**self._summary["stages"], stage: record}})

    def note_origin(self, origin: dict[str, Any]) -> None:
        """Record which run this one was forked from."""
        self._write({"forked_from": origin})

    def set_aside(self, stage: str, paths: Sequence[Path]) -> None:
        """Move the result of a finished stage, or its state, aside until it is replaced."""
        aside = self.path / REPLACED / stage
        if aside.exists():  # the stage was already being redone: delete the unfinished files, keep the finished result
            remove_all(paths)
            return
        partial = aside.with_name(f"{stage}{MOVING}")
        for path in paths:
            target = partial / path.relative_to(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        if partial.exists():
            partial.rename(aside)

    def bring_back(self, stage: str, paths: Sequence[Path]) -> None:
        """Undo `set_aside`: restore the finished result. paths: files begun in its place."""
        aside = self.path / REPLACED / stage
        partial = aside.with_name(f"{stage}{MOVING}")
        if aside.exists():
            remove_all(paths)
            aside.rename(partial)  # from here on, the files at `paths` are the restored ones
        for path in sorted(partial.rglob("*")) if partial.exists() else ():
            target = self.path / path.relative_to(partial)
            if path.exists() and not target.exists():
                path.rename(target)
        self.drop_aside(stage)
        self._write({"begun": {name: note for name, note in self._summary.get("begun", {}).items() if name != stage}})

    def has_aside(self, stage: str) -> bool:
        """Whether files of a stage are set aside."""
        return (self.path / REPLACED / stage).exists()

    def drop_aside(self, stage: str) -> None:
        """Delete the files of a stage that were set aside."""
        for path in (self.path / REPLACED / stage, self.path / REPLACED / f"{stage}{MOVING}"):
            if path.exists():
                remove_directory(path)

    def set_result(self, base: dict, final: dict) -> None:
        """Record the outcome: success of the base policy and of the final one, {"value", "low", "high", "num"} each."""
        gain = 100 * (final["value"] - base["value"])
        self._write({"result": {"base_success": base, "final_success": final, "gain_points": gain}})

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, changes: dict) -> None:
        assert self._lock is not None, "only a folder opened with RunFolder.open is written to"
        if not self._lock.is_held:
            raise UserError(f"{self.path}: another process has taken the folder over, after this one was suspended")
        summary = json_clean({**self._summary, **changes})
        atomic_write(self.path / SUMMARY, _to_json(summary))
        self._summary = summary


def _refuse_foreign(path: Path) -> None:
    """Check the folder before anything is written: a foreign folder is left unchanged."""
    if not path.exists() or (path / CONFIG).exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file; choose another folder with --out")
    others = sorted(
        entry.name
        for entry in path.iterdir()
        if not entry.name.startswith(LOCK) and entry.name != SETTINGS and not is_leftover(entry.name)
    )
    if others:
        raise UserError(
            f"{path} holds other things ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}) and no {CONFIG}; "
            "choose an empty or new folder with --out"
        )


def _prepare(path: Path, config: Config) -> None:
    if (path / CONFIG).exists():
        read_config_json(path / CONFIG)  # a damaged one is named before anything is written
    else:
        # Written first: it marks the folder as ours; the next opening creates what a kill prevented.
        atomic_write(path / CONFIG, config_to_json(config))
    for name in ("", *SUB_FOLDERS):
        (path / name).mkdir(exist_ok=True)
        remove_leftovers(path / name)
    if not (path / SUMMARY).exists():
        atomic_write(path / SUMMARY, _to_json(_fresh_summary(config)))


def remove_all(paths: Sequence[Path]) -> None:
    """Delete files and folders; a kill halfway never leaves half of a folder under its name."""
    for path in paths:
        if path.is_dir():
            remove_directory(path)
        else:
            path.unlink()


def _fresh_summary(config: Config) -> dict:
    return {
        "name": config.name,
        "seed": config.seed,
        "config_hash": config_hash(config),
        "versions": package_versions(),
        "machine": machine_name(),
        "recipe": {},
        "begun": {},
        "stages": {},
        "result": {},
    }


def _to_json(content: dict) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
