import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wmpo_ray.config.dumping import config_hash
from wmpo_ray.config.run import Config, GrpoConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.report.run_data import read_run_metrics
from wmpo_ray.runs.checkpoint import save_checkpoint
from wmpo_ray.runs.folder import RunFolder

CONFIG = Config(name="test", seed=3)
OTHER = Config(name="test", seed=4, grpo=GrpoConfig(learning_rate=0.5))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_says_what_it_is_for(tmp_path):
    with RunFolder.open(tmp_path / "a" / "run", CONFIG) as run:
        assert run.config == CONFIG
        for folder in (run.checkpoints, run.trajectories, run.videos, run.models, run.report):
            assert folder.is_dir() and folder.parent == run.path
    summary = json.loads((tmp_path / "a" / "run" / "summary.json").read_text())
    assert set(summary) == {"name", "seed", "config_hash", "versions", "machine", "recipe", "begun", "stages", "result"}
    assert (summary["name"], summary["seed"], summary["config_hash"]) == ("test", 3, config_hash(CONFIG))
    assert {"python", "torch", "numpy"} <= set(summary["versions"])
    assert f"{os.cpu_count()} cores" in summary["machine"] and "GiB" in summary["machine"]


def test_finished_stages_are_skipped_by_the_next_run(tmp_path):
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        assert not run.is_done("demos")
        run.finish("demos", np.float64(1.5), {"num": np.int64(60), "ratio": float("nan"), "curve": np.arange(2)})
        run.set_result({"value": 0.25, "num": 8}, {"value": np.float32(0.5), "num": 8})
        assert run.is_done("demos")
    for run in (RunFolder.open(tmp_path / "run", CONFIG), RunFolder(tmp_path / "run")):
        assert run.is_done("demos") and not run.is_done("policy")
        assert run.metrics("demos") == {"num": 60, "ratio": None, "curve": [0, 1]}
        assert run.summary["stages"]["demos"]["seconds"] == 1.5
        assert run.summary["result"] == {
            "base_success": {"value": 0.25, "num": 8},
            "final_success": {"value": 0.5, "num": 8},
            "gain_points": 25.0,
        }
        run.close()


def test_the_summary_given_out_is_a_copy(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as run:
        run.summary["stages"]["demos"] = {}
        assert not run.is_done("demos")


def test_metrics_of_a_stage_that_is_not_done(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as run, pytest.raises(UserError, match="demos is not done"):
        run.metrics("demos")


def test_another_config_is_taken_over_when_it_is_accepted_and_not_before(tmp_path):
    RunFolder.open(tmp_path, CONFIG).close()
    before = contents(tmp_path)
    with RunFolder.open(tmp_path, OTHER) as run:
        assert run.config == CONFIG and contents(tmp_path) == before
        run.accept(OTHER, ["demos", "policy"])
        assert run.config == OTHER
    summary = RunFolder(tmp_path).summary
    assert summary["config_hash"] == config_hash(OTHER)
    assert summary["recipe"] == {"kind": "wmpo", "stages": ["demos", "policy"]}


def test_a_stage_is_begun_until_it_is_finished(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as run:
        assert run.begun("policy") is None and run.record("policy") is None
        run.begin("policy", {"key": "a"})
    with RunFolder.open(tmp_path, CONFIG) as run:
        assert run.begun("policy") == {"made_from": {"key": "a"}, "is_clear": True} and not run.is_done("policy")
        run.finish("policy", 1.0, {"loss": 2.0}, {"key": "a"})
        assert run.begun("policy") is None
        assert run.record("policy") == {"seconds": 1.0, "metrics": {"loss": 2.0}, "made_from": {"key": "a"}}


def with_state(path: Path, content: str) -> list[Path]:
    """State of `optimize`: a checkpoint in a folder that others use as well, and a file."""
    save_checkpoint(path / "checkpoints", 1, {}, {"content": content}, keep=1)
    (path / "ledger.jsonl").write_text(content)
    return [path / "checkpoints" / "step-000001", path / "ledger.jsonl"]


def test_state_that_is_set_aside_comes_back_bit_for_bit_or_goes_for_good(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as run:
        paths = with_state(tmp_path, "first")
        before = {path: data for path, data in contents(tmp_path).items() if "summary" not in path}
        for comes_back in (True, False):
            run.set_aside("optimize", paths)
            assert not any(path.exists() for path in paths) and run.has_aside("optimize")
            run.set_aside("optimize", with_state(tmp_path, "second"))  # redone twice: the finished one's state stays
            if comes_back:
                run.bring_back("optimize", with_state(tmp_path, "third"))
                assert {path: data for path, data in contents(tmp_path).items() if "summary" not in path} == before
            else:
                run.drop_aside("optimize")
                assert not run.has_aside("optimize") and not any(path.exists() for path in paths)


def test_state_that_a_kill_left_half_set_aside_comes_back(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as run:
        paths = with_state(tmp_path, "first")
        before = {path: data for path, data in contents(tmp_path).items() if "summary" not in path}
        moving = tmp_path / "replaced" / "optimize.moving" / "checkpoints"
        moving.mkdir(parents=True)
        paths[0].rename(moving / "step-000001")
        run.bring_back("optimize", [paths[1]])
        assert {path: data for path, data in contents(tmp_path).items() if "summary" not in path} == before
        moving.mkdir(parents=True)
        paths[0].rename(moving / "step-000001")
        run.set_aside("optimize", [paths[1]])
        assert not (tmp_path / "checkpoints" / "step-000001").exists() and not paths[1].exists()
        run.bring_back("optimize", [])
        assert {path: data for path, data in contents(tmp_path).items() if "summary" not in path} == before


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="models") as raised:
        RunFolder.open(tmp_path, CONFIG)
    assert str(tmp_path) in str(raised.value)
    assert contents(tmp_path) == {"models/mine.txt": b"mine"}


def test_an_address_in_place_of_the_folder_is_refused_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'--out = "s3:/bucket/run": s3:// is no file system .* change --out'):
        RunFolder.open(Path("s3://bucket/run"), CONFIG)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        RunFolder.open(tmp_path / "run", CONFIG)
    with pytest.raises(UserError, match="run"):
        RunFolder.open(tmp_path / "run" / "deeper", CONFIG)
    assert (tmp_path / "run").read_text() == "mine"


def test_what_a_kill_left_out_is_made_up_for(tmp_path):
    (tmp_path / "config.json.tmp-new-1-0123abcd").write_text("{")
    RunFolder.open(tmp_path, CONFIG).close()
    (tmp_path / "summary.json").unlink()
    (tmp_path / "videos").rmdir()
    (tmp_path / "models" / "policy.tmp-new-1-0123abcd").mkdir()
    with RunFolder.open(tmp_path, CONFIG) as run:
        assert run.summary["stages"] == {} and run.videos.is_dir()
    assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"stages": 3}', b'{"stages": {"policy": 1}}', b"[" * 10**5]
)
def test_a_damaged_summary_is_named(tmp_path, content):
    RunFolder.open(tmp_path, CONFIG).close()
    (tmp_path / "summary.json").write_bytes(content)
    for look in (lambda: RunFolder(tmp_path), lambda: RunFolder.open(tmp_path, CONFIG)):
        with pytest.raises(UserError, match=r"summary\.json is damaged"):
            look()


@pytest.mark.parametrize("content", [b"", b"{", b'{"seeed": 3}'])
def test_a_damaged_config_is_named(tmp_path, content):
    RunFolder.open(tmp_path, CONFIG).close()
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        RunFolder.open(tmp_path, CONFIG)


def test_a_run_of_an_earlier_version_opens_and_is_written_in_the_form_of_today(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as run:
        run.finish("demos", 1.0, {"num": 60})
    path = tmp_path / "summary.json"
    path.write_text(path.read_text().replace('"metrics"', '"figures"'))
    assert read_run_metrics(tmp_path).stage_metrics("demos") == {"num": 60}
    with RunFolder.open(tmp_path, CONFIG) as run:
        assert run.metrics("demos") == {"num": 60}
        run.finish("policy", 2.0, {})
    assert json.loads(path.read_text())["stages"]["demos"] == {"seconds": 1.0, "metrics": {"num": 60}}


def test_only_a_run_folder_can_be_looked_at(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        RunFolder(tmp_path)


def test_two_processes_cannot_use_one_folder_at_the_same_time(tmp_path):
    code = """
import sys
from pathlib import Path
from wmpo_ray.config.run import Config
from wmpo_ray.runs.folder import RunFolder
run = RunFolder.open(Path(sys.argv[1]), Config(name="test", seed=3))
print("locked", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(UserError, match="in use by another process") as raised:
                RunFolder.open(tmp_path, CONFIG)
            assert str(tmp_path) in str(raised.value)
            assert RunFolder(tmp_path).summary["name"] == "test"  # looking is allowed
        finally:
            other.kill()
    RunFolder.open(tmp_path, CONFIG).close()  # a killed process locks nothing


def test_only_the_holder_of_the_lock_writes(tmp_path):
    RunFolder.open(tmp_path, CONFIG).close()
    with pytest.raises(AssertionError):
        RunFolder(tmp_path).finish("demos", 1.0, {})
