"""The command a user types, from nothing to the report, with the smallest preset."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wmpo_ray.data.store import load_episodes
from wmpo_ray.runs.trackers.jsonl import JsonlTracker

ROOT = Path(__file__).parents[2]


def wmpo(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "wmpo_ray", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs") / "ray"
    done = wmpo("run", "smoke", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_it_ends_with_the_table_and_the_report(on_ray):
    out, stdout = on_ray
    summary = json.loads((out / "summary.json").read_text())
    result = summary["result"]
    for word in ("base", "WMPO", "gain", "optimize", str(out / "report" / "index.html")):
        assert word in stdout.replace("\n", "")
    for key in ("base_success", "final_success"):
        assert result[key]["low"] <= result[key]["value"] <= result[key]["high"]
    assert list(summary["stages"]) == [
        "demos", "policy", "collect", "world-model", "reward-model", "gate", "optimize", "evaluate",
    ]  # fmt: skip


def test_it_leaves_what_the_readme_lists(on_ray):
    out, _ = on_ray
    assert [line["update"] for line in JsonlTracker.read(out) if "policy/loss" in line] == [1, 2]
    assert list((out / "tensorboard").glob("events.*")) and (out / "report" / "index.html").stat().st_size > 50_000
    assert len(load_episodes(out / "trajectories" / "collect.parquet")) == 32
    assert (out / "models" / "policy" / "model.safetensors").exists()
    assert not list(out.rglob("*.pkl")) and not list(out.rglob("*.bin"))


def test_without_ray_every_stage_gives_the_same_weights(on_ray, whole_run):
    ours, other = (json.loads((folder / "summary.json").read_text()) for folder in (whole_run.folder, on_ray[0]))
    assert ours["stages"]["optimize"]["metrics"]["weights"] == other["stages"]["optimize"]["metrics"]["weights"]
    assert ours["result"] == other["result"]
    assert ours["stages"]["optimize"]["metrics"]["best"] == other["stages"]["optimize"]["metrics"]["best"]
    kept = [
        {str(file.relative_to(folder)): file.read_bytes() for file in (folder / "checkpoints" / "best").rglob("*.*")}
        for folder in (whole_run.folder, on_ray[0])
    ]
    assert kept[0] == kept[1] and "checkpoints/best/best.json" in kept[0]


def test_a_second_time_nothing_is_done_again_and_another_config_is_refused(on_ray):
    out, _ = on_ray
    before = (out / "models" / "policy" / "model.safetensors").stat().st_mtime_ns
    assert wmpo("run", "smoke", "--out", str(out)).returncode == 0
    refused = wmpo("run", "smoke", "--out", str(out), "--set", "grpo.learning_rate=1e-3")
    assert refused.returncode == 2 and "grpo.learning_rate" in refused.stderr and "Traceback" not in refused.stderr
    assert (out / "models" / "policy" / "model.safetensors").stat().st_mtime_ns == before
