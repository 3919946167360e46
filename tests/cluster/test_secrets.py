"""A token in the environment is nowhere in what a run prints or leaves behind."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest


def places(value: str, folder: Path, *printed: str) -> list[str]:
    """Where a secret stands, also the first half of it."""
    part = value[: len(value) // 2]
    files = [path for path in folder.rglob("*") if path.is_file() and part.encode() in path.read_bytes()]
    return [*map(str, files), *("printed" for text in printed if part in text)]


def test_no_file_of_a_run_and_nothing_printed_holds_a_secret(shell, whole_run):
    out = whole_run.folder
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"config.json", "summary.json", "ledger.jsonl", "events.jsonl", "status.json", "checkpoints/latest"} <= left
    report = shell.wmpo("report", out)
    failing = shell.wmpo("run", "smoke", "--serial", "--out", out, "--set", "world_model.pretrained=none")
    assert failing.returncode == 2
    printed = [*whole_run.printed, *(text for done in (report, failing) for text in (done.stdout, done.stderr))]
    found = {name: places(value, out, *printed) for name, value in shell.hidden.items()}
    assert found == {name: [] for name in shell.hidden}


@pytest.mark.parametrize("command", [["doctor", "--no-ray"], ["presets", "demo"]])
def test_no_command_prints_a_secret(shell, tmp_path, command):
    result = shell.wmpo(*command)
    assert result.stdout and not [
        name for name, value in shell.hidden.items() if places(value, tmp_path / "none", result.stdout)
    ]
    assert not [name for name, value in shell.hidden.items() if places(value, tmp_path / "none", result.stderr)]


@pytest.mark.parametrize("key", ["world_model.pretrained", "reward.verify.pretrained", "world_model.codec"])
def test_an_address_with_a_password_is_refused_without_it(shell, key):
    secret = secrets.token_hex(8)
    result = shell.wmpo("run", "smoke", "--set", f"{key}=https://me:{secret}@host/model")
    assert result.returncode == 2 and key in result.stderr and "https://" in result.stderr
    assert secret not in result.stdout + result.stderr
