"""A test session that leaves a process behind fails, and the process is ended.

Every process that a test starts inherits a variable from the session, also one whose parent has gone.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

MARK = "WMPO_TEST_SESSION"
POLL_S = 0.1
# Children of a process by multiprocessing, which end when their pipe to it closes: ours do when this process ends.
HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


class Leftovers:
    """A plugin of pytest; `grace_s` is how long what was told to end may take."""

    def __init__(self, grace_s: float):
        self.grace_s = grace_s
        self._session = uuid.uuid4().hex
        self._found: dict[int, str] = {}
        os.environ[MARK] = f"{os.environ.get(MARK, '')}:{self._session}"  # a session within a test belongs to both

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if hasattr(session.config, "workerinput"):
            return  # a worker of pytest-xdist: what it leaves belongs to the session that started it, which looks
        self._found = self.remaining(self.grace_s)
        for pid in self._found:
            end(pid, self._session)
        if self._found and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._found:
            terminalreporter.section("processes left behind", red=True)
        for pid, command in self._found.items():
            terminalreporter.write_line(f"{pid} ran {self.grace_s:g} s after the last test and was killed: {command}")

    def remaining(self, grace_s: float = 0.0, command: str = "") -> dict[int, str]:
        """Processes of this session with `command` in their command line, once `grace_s` have passed or none is left."""
        deadline = time.monotonic() + grace_s
        while True:
            found = {pid: line for pid, line in started_in(self._session) if command in line}
            if not found or time.monotonic() >= deadline:
                return found
            time.sleep(POLL_S)


def started_in(session: str) -> Iterator[tuple[int, str]]:
    """Living processes that inherited the session's mark, with their command lines."""
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid == os.getpid() or not is_of(pid, session):
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        if command and not (parent == os.getpid() and any(helper in command for helper in HELPERS)):
            yield pid, command.replace(b"\0", b" ").decode(errors="replace").strip()


def is_of(pid: int, session: str) -> bool:
    try:
        return session.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return False


def end(pid: int, session: str) -> None:
    """Kill a process, unless another has got its number since."""
    if is_of(pid, session):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
