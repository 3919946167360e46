"""Folders of runs in every condition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_live import STAGES, fake_status, write_live
from tests.support.fake_run import fake_metrics, fake_summary
from wmpo_ray.config.dumping import config_to_json
from wmpo_ray.config.loading import load_config


def write_run(folder: Path, overrides: tuple[str, ...] = (), status: dict[str, Any] | None = None) -> Path:
    """A finished run without videos; `status` None: one of a program that wrote no status yet."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_to_json(load_config("demo", ["grpo.num_updates=15", *overrides])))
    (folder / "summary.json").write_text(json.dumps(fake_summary()))
    lines = [line | {"policy/loss": 0.1} for line in fake_metrics()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status is not None:
        write_live(folder, status)
    return folder


@pytest.fixture
def running(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "running", status=fake_status())


@pytest.fixture
def done(tmp_path: Path) -> Path:
    status = fake_status() | {"state": "done", "stages_done": list(STAGES), "stage": ""}
    return write_run(tmp_path / "runs" / "done", status=status)
