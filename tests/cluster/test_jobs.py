"""Runs that are submitted: to a real cluster of two worker nodes, with a token, through Ray's own command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cluster.host.job import job_id, run_folder
from cluster.host.local_cluster import LocalCluster
from cluster.host.submission import connect, submit
from tests.support.documents import ROOT, commands_of
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.folder import RunFolder

PAGE = ROOT / "docs" / "deploy.md"
MARKER = (
    "tests/cluster/test_jobs.py::test_a_submitted_run_is_stopped_in_the_middle_and_goes_on_when_it_is_submitted_again"
)
SETTING = "grpo.num_updates=10"  # enough of them to be stopped in the middle
MIB = 2**20
UPLOAD_LIMIT = 100 * MIB  # of the dashboard


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(num_workers=2, cpus_per_worker=1) as cluster:
        yield cluster


def wait_until(condition, client, job: str, limit_s: float = 240.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        # It may have come true a moment ago.
        assert not client.get_job_status(job).is_terminal() or condition(), client.get_job_logs(job)
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.1)


def test_a_submitted_run_is_stopped_in_the_middle_and_goes_on_when_it_is_submitted_again(cluster, gated_run, tmp_path):
    """What docs/deploy.md says to type, with the smallest preset."""
    commands = [
        command.replace("wmpo_ray run demo", f"wmpo_ray run smoke --set {SETTING}")
        .replace("/shared/runs/demo", str(tmp_path / "smoke"))
        .replace("http://127.0.0.1:8265", cluster.dashboard)
        for command in commands_of(PAGE, MARKER)
    ]
    exports = [command for command in commands if command.startswith("export ")]
    submit_it, status, logs, stop = (command for command in commands if command not in exports)

    def typed(command: str) -> str:
        script = "\n".join(["set -e", *exports, command])
        done = subprocess.run(
            ["bash", "-c", script], check=False, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    client, out, job = connect(cluster.dashboard), tmp_path / "smoke", "demo-1"
    gated_run.copy(out, SETTING)
    typed(submit_it)
    wait_until(lambda: "stage=gate" in client.get_job_logs(job), client, job)
    assert "RUNNING" in typed(status)
    assert re.search(r"^\S+Z INFO stage.skipped .*stage=demos", typed(logs), re.MULTILINE), "one line for each event"
    wait_until((out / "checkpoints" / "step-000001" / "manifest.json").exists, client, job)
    assert json.loads((out / "status.json").read_text())["job"] == job
    assert "stopped" in typed(stop)
    assert client.get_job_status(job) == "STOPPED"
    assert json.loads((out / "status.json").read_text())["state"] == "preempted"
    assert RunFolder(out).is_done("gate") and not RunFolder(out).is_done("optimize")

    typed(submit_it.replace(job, "demo-2"))
    wait_until(lambda: client.get_job_status("demo-2") == "SUCCEEDED", client, "demo-2")
    assert RunFolder(out).metrics("optimize")["resumed_from"] >= 1
    log = client.get_job_logs("demo-2")
    assert "gain" in log and "\x1b[" not in log


def test_a_local_cluster_keeps_to_its_own_folder(cluster):
    """Its address is no other cluster's default, and no two nodes unpack a job's folder in one place."""
    default = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    assert not default.exists() or default.read_text() != cluster.address
    assert (cluster.temp_dir / "ray_current_cluster").read_text() == cluster.address
    session = (cluster.temp_dir / "session_latest").resolve()
    assert len([folder for folder in session.iterdir() if folder.name.startswith("runtime_resources")]) == 3


def test_the_wrong_token_is_told_in_one_line(cluster):
    script = f"from cluster.host.submission import connect; connect({cluster.dashboard!r})"
    for environment in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_TOKEN_PATH": "/nonexistent/token"}):
        done = subprocess.run(
            [sys.executable, "-c", script],
            check=False,
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode != 0 and "does not accept the token" in done.stderr, done.stderr


def test_a_working_directory_that_is_too_large_is_refused(cluster, tmp_path):
    (tmp_path / "model.bin").write_bytes(os.urandom(UPLOAD_LIMIT + MIB))
    (tmp_path / "small.txt").write_text("small")
    client = connect(cluster.dashboard)
    with pytest.raises(UserError, match=r"the dashboard takes 100 MiB: .*model\.bin \(101 MiB\).*\.rayignore"):
        submit(client, ["true"], tmp_path, {})
    (tmp_path / ".rayignore").write_text("*.bin\n")
    assert submit(client, ["true"], tmp_path, {}).startswith("raysubmit_")
    with pytest.raises(UserError, match="no such folder"):
        submit(client, ["true"], tmp_path / "nowhere", {})


def test_nobody_at_the_address():
    with pytest.raises(UserError, match="is the cluster there"):
        connect("http://127.0.0.1:9")
    with pytest.raises(UserError, match="expected the dashboard"):
        connect("127.0.0.1:6379")


def test_a_job_keeps_its_run_out_of_its_working_directory(monkeypatch, tmp_path):
    config = Config(name="mine")
    monkeypatch.delenv("WMPO_RUNS", raising=False)
    assert run_folder(None, config) == Path("runs/mine") and job_id() == ""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert job_id() == "raysubmit_1"
    assert run_folder(None, config) == Path.home() / "wmpo-runs" / "mine"
    with pytest.raises(UserError, match="relative, and the working directory of a job is deleted"):
        run_folder(Path("runs/mine"), config)
    monkeypatch.setenv("WMPO_RUNS", str(tmp_path))
    assert run_folder(None, config) == tmp_path / "mine"
