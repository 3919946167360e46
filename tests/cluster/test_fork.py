"""A fork keeps what its settings do not change, ends with the bits of a run that had them, and shares nothing."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.reuse.fork import SETTINGS, fork_run
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.folder import LOCK, RunFolder
from wmpo_ray.runs.folder_lock import FolderLock

ALIGNED_LESS = "world_model.alignment.steps=2"
BEFORE = ["demos", "policy", "collect"]


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def weights(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder / "models").items() if name.endswith(".safetensors")}


def run(folder: Path, **options) -> dict:
    """Go on with a fork, as its user does."""
    return run_pipeline(load_config(str(folder / SETTINGS)), folder, serial=True, **options)


def test_a_fork_keeps_what_comes_before_the_change_and_leaves_its_run_alone(gated_run, tmp_path):
    source = gated_run.copy(tmp_path / "run")
    before, out = files(source), tmp_path / "fork"
    steps = fork_run(source, out, [ALIGNED_LESS])
    assert [each.label for each in steps if each.is_kept] == BEFORE
    (changed,) = [each for each in steps if each.label == "world-model"]
    assert changed.reason == "world_model.alignment.steps: 4 -> 2"
    assert files(source) == before
    folder = RunFolder(out)
    assert list(folder.summary["stages"]) == BEFORE and folder.summary["forked_from"]["kept"] == BEFORE
    assert folder.config == load_config("smoke", [ALIGNED_LESS]) == load_config(str(out / SETTINGS))
    assert folder.record("collect") == RunFolder(source).record("collect")
    kept = {"trajectories/demos.parquet", "trajectories/collect.parquet", "models/base-policy/model.safetensors"}
    there = files(out)
    assert kept <= there.keys() and "models/world-model/config.json" not in there
    for name in kept:
        assert there[name] == before[name] and not os.path.samefile(out / name, source / name)


def test_a_fork_ends_with_the_bits_of_the_run_that_is_resumed_with_its_settings(gated_run, tmp_path):
    source, out = gated_run.copy(tmp_path / "run"), tmp_path / "fork"
    fork_run(source, out, [ALIGNED_LESS])
    run(out, until="reward-model")
    run_pipeline(load_config("smoke", [ALIGNED_LESS]), source, serial=True, resume=True, until="reward-model")
    assert weights(out) == weights(source)


def test_a_stage_with_a_larger_extent_goes_further_from_its_copy(whole_run, tmp_path):
    source, out = whole_run.copy(tmp_path / "run"), tmp_path / "fork"
    steps = {each.label: each for each in fork_run(source, out, ["grpo.num_updates=3"])}
    assert steps["optimize"].is_kept and steps["optimize"].reason == "grpo.num_updates: 2 -> 3"
    assert not steps["evaluate"].is_kept and not RunFolder(out).summary["result"]
    assert run(out, resume=True, until="optimize")["stages"]["optimize"]["metrics"]["resumed_from"] == 2


def test_a_fork_that_changes_no_result_is_a_copy_with_its_outcome(whole_run, tmp_path):
    out = tmp_path / "deep" / "fork"
    steps = fork_run(whole_run.folder, out, ["name=other", "evaluation.every_updates=0"])
    assert all(each.is_kept and not each.reason for each in steps)
    old, new = RunFolder(whole_run.folder), RunFolder(out)
    assert new.summary["result"] == old.summary["result"] and new.config.name == "other"
    assert weights(out) == weights(whole_run.folder)
    assert (out / "ledger.jsonl").read_bytes() == (whole_run.folder / "ledger.jsonl").read_bytes()
    assert list((out / "tensorboard" / "policy").iterdir())


def test_what_is_not_done_or_of_an_earlier_version_will_be_run(gated_run, tmp_path):
    source = gated_run.copy(tmp_path / "run")
    with RunFolder.open(source, RunFolder(source).config) as folder:
        record = folder.record("gate")
        folder.finish("gate", record["seconds"], record["metrics"])
    reasons = {each.label: each.reason for each in fork_run(source, tmp_path / "fork")}
    assert reasons["gate"].startswith("made by an earlier version") and reasons["optimize"] == "not done"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["seed=5"], r"nothing of .* can be kept: demos \(seed: 0 -> 5\).*begin a run"),
        (["grpo.nonsense=1"], "unknown key grpo.nonsense"),
        (["world_model.pretrained=missing"], r"world_model\.pretrained = missing: does not exist"),
        (["dpo.learning_rate=1"], r"dpo\.learning_rate"),
    ],
)
def test_settings_that_cannot_be_leave_nothing(gated_run, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        fork_run(gated_run.folder, tmp_path / "fork", settings)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused(gated_run, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes").write_text("mine")
    source = gated_run.copy(tmp_path / "run")
    for out, message in ((taken, "is there already"), (source / "fork", "not inside it"), (tmp_path, "around it")):
        with pytest.raises(UserError, match=message):
            fork_run(source, out, [ALIGNED_LESS])
    with pytest.raises(UserError, match="is not the folder of a run"):
        fork_run(tmp_path / "nowhere", tmp_path / "fork")
    assert files(taken) == {"notes": b"mine"} and not (source / "fork").exists()


def test_a_run_in_use_is_not_copied(gated_run, tmp_path):
    source = gated_run.copy(tmp_path / "run")
    lock = FolderLock(source / LOCK)
    try:
        with pytest.raises(UserError, match="is in use by"):
            fork_run(source, tmp_path / "fork", [ALIGNED_LESS])
    finally:
        lock.close()
    assert not (tmp_path / "fork").exists()


def test_a_copy_that_fails_leaves_nothing(gated_run, tmp_path, monkeypatch):
    def fail(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    monkeypatch.setattr("cluster.recipes.reuse.fork.FICLONE", 0)
    with pytest.raises(UserError, match="the disk is full"):
        fork_run(gated_run.folder, tmp_path / "fork", [ALIGNED_LESS])
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_is_kept_and_how_to_go_on(gated_run, tmp_path):
    out = tmp_path / "fork"
    done = CliRunner().invoke(app, ["fork", str(gated_run.folder), "--out", str(out), "--set", ALIGNED_LESS])
    assert done.exit_code == 0, done.output
    assert re.search(r"collect +│ kept ", done.output) and re.search(r"gate +│ to be run ", done.output)
    assert f"wmpo run {out / SETTINGS} --out {out}" in done.output
