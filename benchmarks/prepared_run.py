"""A run of the demo that stands before its GRPO stage, and copies of it that go on differently."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from wmpo_ray.config.dumping import config_to_json
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write
from wmpo_ray.runs.folder import CONFIG, RunFolder

ROOT = Path(__file__).parents[1]
STAGE = "optimize"
STAGE_SECTIONS = ("rollout", "filter", "grpo", "evaluation")  # of the config: those that concern no earlier stage


def make_run(folder: Path, settings: Sequence[str] = ()) -> Path:
    """The demo's stages up to the gate, in a process of their own."""
    command = [sys.executable, "-m", "wmpo_ray", "run", "demo", "--out", str(folder), "--until", "gate", "--resume"]
    command += [word for setting in settings for word in ("--set", setting)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def check_run(run: Path) -> None:
    """Raises UserError where a folder cannot be copied and gone on with."""
    state = RunFolder(run)
    if not state.is_done("gate") or state.is_done(STAGE) or any(state.checkpoints.iterdir()):
        raise UserError(f"{run}: it must be done up to the gate and not begun {STAGE}; leave --run out to make one")


def copy_run(run: Path, folder: Path, settings: Sequence[str]) -> Config:
    """Copy a run, set to what `settings` ask of the stage; returns its config."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report"))
    config, wanted = RunFolder(folder).config, load_config("demo", settings)
    config = config.model_copy(update={section: getattr(wanted, section) for section in STAGE_SECTIONS})
    atomic_write(folder / CONFIG, config_to_json(config))
    return config
