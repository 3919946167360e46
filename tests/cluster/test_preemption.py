"""A run that is told to leave does so in time, and a run that crashed goes on by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.host.preemption import EXIT_PREEMPTED, restart_on_crash
from wmpo_ray.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]


def start(out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "wmpo_ray", "run", "smoke", "--out", str(out), *arguments]
    # A file: Ray's processes inherit it, and a pipe would not end before the last of them does.
    with open(out.with_suffix(".stderr"), "a") as stderr:
        return subprocess.Popen(command, cwd=ROOT, stderr=stderr)


def said(out: Path) -> str:
    return out.with_suffix(".stderr").read_text()


def wait_for(path: Path, process: subprocess.Popen, out: Path, limit_s: float = 200.0) -> None:
    deadline = time.monotonic() + limit_s
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, said(out)
        time.sleep(0.01)


@pytest.mark.slow
def test_told_to_leave_it_is_gone_within_three_seconds_and_goes_on_later(gated_run, tmp_path):
    out = gated_run.copy(tmp_path / "run")
    process = start(out)
    wait_for(out / "checkpoints" / "step-000001" / "manifest.json", process, out)
    started = time.monotonic()
    process.terminate()
    assert process.wait() == EXIT_PREEMPTED
    assert time.monotonic() - started < 3.0
    assert "--resume goes on from here" in said(out)
    assert start(out, "--resume", "--serial", "--until", "optimize").wait() == 0
    assert RunFolder(out).metrics("optimize")["resumed_from"] >= 1


def test_a_crash_is_gone_on_from_and_a_mistake_is_not(tmp_path):
    out, told = tmp_path / "run", []
    crashes = tmp_path / "sitecustomize.py"
    # A process that is killed once in the middle of the first stage that saves its state.
    crashes.write_text(
        "import os, pathlib, signal, threading, time\n"
        f"mark, sign = pathlib.Path({str(tmp_path / 'crashed')!r}), pathlib.Path({str(out / 'trajectories/demos.parquet')!r})\n"
        "def crash():\n"
        "    while not sign.exists(): time.sleep(0.01)\n"
        "    mark.touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "if not mark.exists(): threading.Thread(target=crash, daemon=True).start()\n"
    )
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    try:
        arguments = ["run", "smoke", "--out", str(out), "--serial", "--until", "policy"]
        assert restart_on_crash(arguments, 2, told.append) == 0
        assert (tmp_path / "crashed").exists() and len(told) == 1 and str(128 + signal.SIGKILL) in told[0]
        assert RunFolder(out).is_done("policy")
        assert restart_on_crash(["run", "no-such-preset", "--out", str(out)], 2, told.append) == 2
        assert len(told) == 1
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)
