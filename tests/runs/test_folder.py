import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wmpo_ray.config.loading import config_hash
from wmpo_ray.config.run import Config, GrpoConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.checkpoint import save_checkpoint
from wmpo_ray.runs.folder import RunFolder

CONFIG = Config(name="test", seed=3)
OTHER = Config(name="test", seed=4, grpo=GrpoConfig(learning_rate=0.5))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_says_what_it_is_for(tmp_path):
    with RunFolder.open(tmp_path / "a" / "run", CONFIG, resume=False) as run:
        assert run.config == CONFIG
        for folder in (run.checkpoints, run.trajectories, run.videos, run.models, run.report):
            assert folder.is_dir() and folder.parent == run.path
    summary = json.loads((tmp_path / "a" / "run" / "summary.json").read_text())
    assert set(summary) == {"name", "seed", "config_hash", "versions", "machine", "stages", "result"}
    assert (summary["name"], summary["seed"], summary["config_hash"]) == ("test", 3, config_hash(CONFIG))
    assert {"python", "torch", "numpy"} <= set(summary["versions"])
    assert f"{os.cpu_count()} cores" in summary["machine"] and "GiB" in summary["machine"]


def test_finished_stages_are_skipped_by_the_next_run(tmp_path):
    with RunFolder.open(tmp_path / "run", CONFIG, resume=False) as run:
        assert not run.is_done("demos")
        run.finish("demos", np.float64(1.5), {"num": np.int64(60), "ratio": float("nan"), "curve": np.arange(2)})
        run.set_result({"value": 0.25, "num": 8}, {"value": np.float32(0.5), "num": 8})
        assert run.is_done("demos")
    for run in (RunFolder.open(tmp_path / "run", CONFIG, resume=False), RunFolder(tmp_path / "run")):
        assert run.is_done("demos") and not run.is_done("policy")
        assert run.figures("demos") == {"num": 60, "ratio": None, "curve": [0, 1]}
        assert run.summary["stages"]["demos"]["seconds"] == 1.5
        assert run.summary["result"] == {
            "base_success": {"value": 0.25, "num": 8},
            "final_success": {"value": 0.5, "num": 8},
            "gain_points": 25.0,
        }
        run.close()


def test_the_summary_given_out_is_a_copy(tmp_path):
    with RunFolder.open(tmp_path, CONFIG, resume=False) as run:
        run.summary["stages"]["demos"] = {}
        assert not run.is_done("demos")


def test_figures_of_a_stage_that_is_not_done(tmp_path):
    with RunFolder.open(tmp_path, CONFIG, resume=False) as run, pytest.raises(UserError, match="demos is not done"):
        run.figures("demos")


@pytest.mark.parametrize("resume", [False, True])
def test_another_config_is_refused_with_the_keys_and_both_values(tmp_path, resume):
    RunFolder.open(tmp_path, CONFIG, resume=False).close()
    before = contents(tmp_path)
    with pytest.raises(UserError) as raised:
        RunFolder.open(tmp_path, OTHER, resume)
    message = str(raised.value)
    assert str(tmp_path) in message and "seed: 3 -> 4" in message
    assert f"grpo.learning_rate: {CONFIG.grpo.learning_rate} -> 0.5" in message
    assert "name" not in message.partition("another config:")[2]
    assert contents(tmp_path) == before
    RunFolder.open(tmp_path, CONFIG, resume).close()  # the refusal has let go of the lock


def test_a_stage_stopped_in_the_middle_needs_resume(tmp_path):
    with RunFolder.open(tmp_path, CONFIG, resume=False) as run:
        save_checkpoint(run.checkpoints, 1, {}, {}, keep=1)
    with pytest.raises(UserError, match="--resume"):
        RunFolder.open(tmp_path, CONFIG, resume=False)
    with RunFolder.open(tmp_path, CONFIG, resume=True) as run:
        run.finish("optimize", 1.0, {})
    RunFolder.open(tmp_path, CONFIG, resume=False).close()


@pytest.mark.parametrize(
    ("stage", "training"),
    [
        ("policy", "policy"),
        ("world-model", "world-model"),
        ("world-model", "verifier"),
        ("reward-model", "reward-model"),
    ],
)
def test_a_supervised_stage_stopped_in_the_middle_needs_resume_and_leaves_no_state_once_done(tmp_path, stage, training):
    with RunFolder.open(tmp_path, CONFIG, resume=False) as run:
        save_checkpoint(run.training_checkpoints(training), 100, {}, {}, keep=1)
    with pytest.raises(UserError, match=f"stage {stage} stopped in the middle.*--resume"):
        RunFolder.open(tmp_path, CONFIG, resume=False)
    with RunFolder.open(tmp_path, CONFIG, resume=True) as run:
        assert (run.training_checkpoints(training) / "step-000100").is_dir()
        run.finish("demos", 1.0, {})
        assert run.training_checkpoints(training).is_dir()
        run.finish(stage, 1.0, {})
        assert not run.training_checkpoints(training).exists()
    RunFolder.open(tmp_path, CONFIG, resume=False).close()


def test_the_state_of_a_training_goes_even_if_the_kill_came_just_after_its_stage_was_recorded(tmp_path):
    with RunFolder.open(tmp_path, CONFIG, resume=False) as run:
        run.finish("policy", 1.0, {})
        save_checkpoint(run.training_checkpoints("policy"), 100, {}, {}, keep=1)
        save_checkpoint(run.checkpoints, 1, {}, {}, keep=1)
        run.finish("optimize", 1.0, {})
    with RunFolder.open(tmp_path, CONFIG, resume=False) as run:
        assert not run.training_checkpoints("policy").exists()
        assert (run.checkpoints / "step-000001").is_dir()  # of optimize: they stay


FREE = {
    "placement": {"layout": "collocated", "reward": {"cpus": 1.0}},
    "faults": {"max_start_failures": 9},
    "checkpoint": {"keep": 5, "every_training_steps": 7},
    "cluster": {"imagination_actors": (1, 4), "reward_actors": 3, "address": "10.0.0.1:6379"},
    "weights": {"transport": "gloo", "timeout_s": 5.0},
}
BOUND = [
    {"cluster": {"threads_per_process": 4}},
    {"weights": {"payload": "delta"}},
    {"weights": {"dtype": "bfloat16"}},
    {"rollout": {"groups_per_request": 2}},
]


@pytest.mark.parametrize("resume", [False, True])
def test_settings_that_do_not_change_the_result_are_taken_over(tmp_path, resume):
    RunFolder.open(tmp_path, CONFIG, resume=False).close()
    other = Config.model_validate({"name": "test", "seed": 3, **FREE})
    with RunFolder.open(tmp_path, other, resume) as run:
        assert run.config == other and run.summary["config_hash"] == config_hash(other)
        run.finish("demos", 1.0, {})
    with RunFolder.open(tmp_path, CONFIG, resume) as run:  # and back
        assert run.config == CONFIG and run.is_done("demos")
    assert RunFolder(tmp_path).summary["config_hash"] == config_hash(CONFIG)


@pytest.mark.parametrize("bound", BOUND, ids=str)
def test_one_setting_that_does_is_enough_to_refuse_and_only_it_is_named(tmp_path, bound):
    RunFolder.open(tmp_path, CONFIG, resume=False).close()
    before = contents(tmp_path)
    ((section, settings),) = bound.items()
    merged = {**FREE, section: {**FREE.get(section, {}), **settings}}
    with pytest.raises(UserError) as raised:
        RunFolder.open(tmp_path, Config.model_validate({"name": "test", "seed": 3, **merged}), resume=True)
    differences = str(raised.value).partition("another config: ")[2]
    assert differences.startswith(f"{section}.{next(iter(settings))}: ") and differences.count(" -> ") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path, resume):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="models") as raised:
        RunFolder.open(tmp_path, CONFIG, resume)
    assert str(tmp_path) in str(raised.value)
    assert contents(tmp_path) == {"models/mine.txt": b"mine"}


def test_an_address_in_place_of_the_folder_is_refused_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'--out = "s3:/bucket/run": s3:// is no file system .* change --out'):
        RunFolder.open(Path("s3://bucket/run"), CONFIG, resume=False)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        RunFolder.open(tmp_path / "run", CONFIG, resume=False)
    with pytest.raises(UserError, match="run"):
        RunFolder.open(tmp_path / "run" / "deeper", CONFIG, resume=False)
    assert (tmp_path / "run").read_text() == "mine"


def test_what_a_kill_left_out_is_made_up_for(tmp_path):
    (tmp_path / "config.json.tmp-new-1-0123abcd").write_text("{")
    RunFolder.open(tmp_path, CONFIG, resume=False).close()
    (tmp_path / "summary.json").unlink()
    (tmp_path / "videos").rmdir()
    (tmp_path / "models" / "policy.tmp-new-1-0123abcd").mkdir()
    with RunFolder.open(tmp_path, CONFIG, resume=False) as run:
        assert run.summary["stages"] == {} and run.videos.is_dir()
    assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"stages": 3}', b'{"stages": {"policy": 1}}', b"[" * 10**5]
)
def test_a_damaged_summary_is_named(tmp_path, content):
    RunFolder.open(tmp_path, CONFIG, resume=False).close()
    (tmp_path / "summary.json").write_bytes(content)
    for look in (lambda: RunFolder(tmp_path), lambda: RunFolder.open(tmp_path, CONFIG, resume=True)):
        with pytest.raises(UserError, match=r"summary\.json is damaged"):
            look()


@pytest.mark.parametrize("content", [b"", b"{", b'{"seeed": 3}'])
def test_a_damaged_config_is_named(tmp_path, content):
    RunFolder.open(tmp_path, CONFIG, resume=False).close()
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        RunFolder.open(tmp_path, CONFIG, resume=True)


def test_only_a_run_folder_can_be_looked_at(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        RunFolder(tmp_path)


def test_two_processes_cannot_use_one_folder_at_the_same_time(tmp_path):
    code = """
import sys
from pathlib import Path
from wmpo_ray.config.run import Config
from wmpo_ray.runs.folder import RunFolder
run = RunFolder.open(Path(sys.argv[1]), Config(name="test", seed=3), resume=False)
print("locked", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(UserError, match="in use by another process") as raised:
                RunFolder.open(tmp_path, CONFIG, resume=True)
            assert str(tmp_path) in str(raised.value)
            assert RunFolder(tmp_path).summary["name"] == "test"  # looking is allowed
        finally:
            other.kill()
    RunFolder.open(tmp_path, CONFIG, resume=True).close()  # a killed process locks nothing


def test_only_the_holder_of_the_lock_writes(tmp_path):
    RunFolder.open(tmp_path, CONFIG, resume=False).close()
    with pytest.raises(AssertionError):
        RunFolder(tmp_path).finish("demos", 1.0, {})
