"""One trial of a sweep: a run of its own, forked from what all trials share, that reports its success on the way."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from cluster.recipes.reuse.fork import SETTINGS, fork_run
from cluster.sweeps.space import ranges_of, setting
from wmpo_ray.config.dumping import config_to_toml
from wmpo_ray.config.loading import load_config, overridden
from wmpo_ray.core.files import atomic_write
from wmpo_ray.runs.folder import LOCK, RunFolder
from wmpo_ray.runs.folder_lock import FolderLock, LockedError
from wmpo_ray.runs.trackers.jsonl import JsonlTracker

TRIALS, SHARED, FORKING, BASE = "trials", "shared", "forking.lock", "settings.toml"
POLL_S, LEAVE_S, FREE_S = 0.5, 20.0, 120.0
LOG_BYTES = 2000  # of a failed run's log that its error shows
UPDATE, SUCCESS = "update", "success"  # of what is reported


class SweepTrial(tune.Trainable):
    """Settings: `root` of the sweep, `settings` by dotted key, `metric` that is searched by, `options` of `wmpo run`.

    The run is a process of its own, and its folder its state: a trial that is begun again goes on with it, and reports
    what it had reported.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.root, self.metric = Path(config["root"]), config["metric"]
        ranges = ranges_of(self.root)
        self.overrides = [setting(key, ranges[key].rounded(value)) for key, value in sorted(config["settings"].items())]
        self.folder = self.root / TRIALS / self.trial_id
        self.reported = 0  # the last update
        self.success = 0.0
        make_folder(self.root, self.folder, self.overrides)
        self.process = begin_run(self.folder, config["options"])

    def step(self) -> dict[str, Any]:
        """The next update whose success was measured; at the end the result of the run."""
        while True:
            ended = self.process.poll() is not None  # before the file is read: nothing comes after
            for line in JsonlTracker.read(self.folder):
                update, value = line.get("update", 0), line.get(self.metric)
                if update > self.reported and isinstance(value, int | float):
                    self.reported, self.success = int(update), float(value)
                    return {UPDATE: self.reported, SUCCESS: self.success, "done": False}
            if ended:
                return self._result()
            time.sleep(POLL_S)

    def _result(self) -> dict[str, Any]:
        if self.process.returncode:
            raise RuntimeError(f"{self.folder.name} ended with {self.process.returncode}: {end_of_log(self.folder)}")
        return {UPDATE: self.reported, SUCCESS: self.success, "done": True}

    def cleanup(self) -> None:
        """A run that is stopped leaves its checkpoint."""
        stop_run(self.process)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # the run's folder is the state

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass


def begin_run(folder: Path, options: Sequence[str]) -> subprocess.Popen:
    """Go on with the run in a folder, in a process of its own; what it prints is in FOLDER.log beside it."""
    wait_until_free(folder)
    command = [sys.executable, "-m", "cluster.sweeps.bound_process", str(os.getpid()), "run", str(folder / SETTINGS)]
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [*command, "--out", str(folder), "--serial", "--resume", "--quiet", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_until_free(folder: Path) -> None:
    """The run of a sweep that was killed a moment ago may still be leaving its checkpoint; it is no failure of the next."""
    deadline = time.monotonic() + FREE_S
    while (folder / LOCK).exists() and time.monotonic() < deadline:
        try:
            FolderLock(folder / LOCK).close()
        except LockedError:
            time.sleep(POLL_S)
        else:
            return


def stop_run(process: subprocess.Popen) -> None:
    """End it if it has not ended, in time to leave its checkpoint."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_of_log(folder: Path) -> str:
    return folder.with_suffix(".log").read_bytes()[-LOG_BYTES:].decode(errors="replace").strip()


def make_folder(root: Path, folder: Path, overrides: list[str]) -> None:
    """Fork the shared stages, if there are any; one trial at a time, since a run that is copied is locked meanwhile."""
    if (folder / SETTINGS).is_file():
        return
    folder.parent.mkdir(exist_ok=True)
    with open(root / FORKING, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (root / SHARED).is_dir():
            fork_run(root / SHARED, folder, overrides)
            return
    folder.mkdir(exist_ok=True)
    config = overridden(load_config(str(root / BASE)), overrides)
    atomic_write(folder / SETTINGS, config_to_toml(config))


def result_of(folder: Path) -> dict[str, Any]:
    """The real success before and after, of a run that was evaluated; empty of any other."""
    if not (folder / "summary.json").is_file():
        return {}
    return RunFolder(folder).summary.get("result") or {}
