"""Runs of the smallest preset without Ray, made once for all tests that begin with one."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.documents import ROOT
from tests.support.one_stage import Listener, do
from tests.support.recordings import RECORDING, STAGES, begin, recorded
from wmpo_ray.config.dumping import config_to_json
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.files import atomic_write
from wmpo_ray.runs.folder import CONFIG

VARIABLES = ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY")


@dataclass(frozen=True)
class Shell:
    """Somebody's shell, with secrets in it: environment variables and a token file, by where they stand."""

    home: Path
    hidden: dict[str, str]

    def wmpo(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        variables = {name: value for name, value in self.hidden.items() if name != "file"}
        return subprocess.run(
            [sys.executable, "-m", "wmpo_ray", *map(str, arguments)],
            env={**kept, **variables, "HOME": str(self.home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=self.home,
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )


@dataclass(frozen=True)
class SmokeRun:
    folder: Path
    printed: tuple[str, ...]

    def copy(self, folder: Path, *settings: str) -> Path:
        """A run of its own that goes on from here, with settings of stages that are not done."""
        shutil.copytree(self.folder, folder)
        atomic_write(folder / CONFIG, config_to_json(load_config("smoke", settings)))
        return folder


@pytest.fixture(scope="session")
def shell(tmp_path_factory) -> Shell:
    home = tmp_path_factory.mktemp("home")
    hidden = {name: secrets.token_hex(24) for name in VARIABLES} | {"file": secrets.token_hex(24)}
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text(hidden["file"])
    return Shell(home, hidden)


@pytest.fixture(scope="session")
def gated_run(shell, tmp_path_factory) -> SmokeRun:
    """Every stage up to the gate is done."""
    folder = tmp_path_factory.mktemp("runs") / "gated"
    done = shell.wmpo("run", "smoke", "--serial", "--out", folder, "--until", "gate")
    assert done.returncode == 0, done.stderr
    return SmokeRun(folder, (done.stdout, done.stderr))


@pytest.fixture(scope="session")
def whole_run(shell, gated_run) -> SmokeRun:
    folder = gated_run.copy(gated_run.folder.with_name("whole"))
    done = shell.wmpo("run", "smoke", "--serial", "--out", folder)
    assert done.returncode == 0, done.stderr
    return SmokeRun(folder, (*gated_run.printed, done.stdout, done.stderr))


@pytest.fixture(scope="session")
def recorded_run(tmp_path_factory) -> Path:
    """The stages that record and evaluate, in one process, without a break."""
    path = begin(tmp_path_factory.mktemp("runs") / "recorded")
    for stage in STAGES:
        assert do(path, stage, RECORDING, Listener())["restarted"] == 0
    assert len(recorded(path)) == 8 and not list(path.glob("checkpoints/*")), "parts are gone"
    return path
