"""The check that tests leave no process behind, on sessions of pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.documents import ROOT

CONFTEST = """
from tests.support.leftovers import Leftovers
def pytest_configure(config):
    config.pluginmanager.register(Leftovers(grace_s={grace_s}))
"""
# The shell ends at once: its child is nobody's.
TEST = """
import subprocess
def test_it():
    pid = subprocess.run(["sh", "-c", "sleep {seconds} >/dev/null 2>&1 & echo $!"], capture_output=True, check=True).stdout
    with open("pid", "wb") as file:
        file.write(pid)
    assert {passes}
"""


def session_with(folder: Path, seconds: float, grace_s: float, passes: bool = True) -> tuple[int, str, int]:
    """Exit code and output of a session whose test leaves a sleeping process, and the number of that."""
    (folder / "conftest.py").write_text(CONFTEST.format(grace_s=grace_s))
    (folder / "test_it.py").write_text(TEST.format(seconds=seconds, passes=passes))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, int((folder / "pid").read_text())


def is_running(pid: int) -> bool:
    """Whether the kernel still has more of it than an exit code that nobody has read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_session_fails_that_leaves_a_process_behind(tmp_path):
    code, output, pid = session_with(tmp_path, seconds=600, grace_s=0.3)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 passed" in output and f"{pid} ran 0.3 s after the last test and was killed: sleep 600" in output
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_a_process_may_take_a_moment_to_end(tmp_path):
    code, output, _ = session_with(tmp_path, seconds=1, grace_s=60)
    assert code == pytest.ExitCode.OK and "left behind" not in output


def test_a_failed_test_is_still_what_the_session_reports(tmp_path):
    code, output, _ = session_with(tmp_path, seconds=600, grace_s=0, passes=False)
    assert code == pytest.ExitCode.TESTS_FAILED and "1 failed" in output and "sleep 600" in output
