"""A token in the environment is nowhere in what a run prints or leaves behind."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Every stage of the smallest preset.
SETTINGS = {"world_model.kind": "simulator", "rollout.groups_per_update": "2", "grpo.num_updates": "1"}
VARIABLES = ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY")


@pytest.fixture
def hidden(tmp_path) -> dict[str, str]:
    """Secrets by where they stand: environment variables and a token file."""
    found = {name: secrets.token_hex(24) for name in VARIABLES} | {"file": secrets.token_hex(24)}
    path = tmp_path / "home" / ".ray" / "auth_token"
    path.parent.mkdir(parents=True)
    path.touch(0o600)
    path.write_text(found["file"])
    return found


def wmpo(tmp_path: Path, hidden: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    variables = {name: value for name, value in hidden.items() if name != "file"}
    return subprocess.run(
        [sys.executable, "-m", "wmpo_ray", *arguments],
        env={**kept, **variables, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


def places(value: str, folder: Path, *printed: str) -> list[str]:
    """Where a secret stands, also the first half of it."""
    part = value[: len(value) // 2]
    files = [path for path in folder.rglob("*") if path.is_file() and part.encode() in path.read_bytes()]
    return [*map(str, files), *("printed" for text in printed if part in text)]


def test_no_file_of_a_run_and_nothing_printed_holds_a_secret(tmp_path, hidden):
    overrides = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    out = tmp_path / "run"
    run = wmpo(tmp_path, hidden, "run", "smoke", "--serial", "--force", "--out", str(out), *overrides)
    left = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert {"config.json", "summary.json", "ledger.jsonl", "checkpoints/latest"} <= set(left), run.stderr
    report = wmpo(tmp_path, hidden, "report", str(out))
    failing = wmpo(
        tmp_path, hidden, "run", "smoke", "--serial", "--out", str(out), "--set", "world_model.pretrained=none"
    )
    printed = [text for result in (run, report, failing) for text in (result.stdout, result.stderr)]
    assert failing.returncode == 2
    assert {name: places(value, out, *printed) for name, value in hidden.items()} == {name: [] for name in hidden}


@pytest.mark.parametrize("command", [["doctor", "--no-ray"], ["presets", "demo"]])
def test_no_command_prints_a_secret(tmp_path, hidden, command):
    result = wmpo(tmp_path, hidden, *command)
    assert result.stdout and not [
        name for name, value in hidden.items() if places(value, tmp_path / "none", result.stdout)
    ]
    assert not [name for name, value in hidden.items() if places(value, tmp_path / "none", result.stderr)]


@pytest.mark.parametrize("key", ["world_model.pretrained", "reward.verify.pretrained", "world_model.codec"])
def test_an_address_with_a_password_is_refused_without_it(tmp_path, hidden, key):
    secret = secrets.token_hex(8)
    result = wmpo(tmp_path, hidden, "run", "smoke", "--set", f"{key}=https://me:{secret}@host/model")
    assert result.returncode == 2 and key in result.stderr and "https://" in result.stderr
    assert secret not in result.stdout + result.stderr
