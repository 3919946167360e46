"""One process at a time, on file systems with flock and without, whatever became of the one before."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs import folder_lock
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.folder_lock import STALE_S, FolderLock, LockedError, OwnerFile

ROOT = Path(__file__).parents[2]
OTHER_MACHINE = {"id": "other", "host": "node-7", "pid": 1, "machine": "another boot", "started": "5"}
HOLDER = """
import errno, fcntl, os, sys, time
from pathlib import Path
def flock(file, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
from wmpo_ray.runs.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=[0, errno.ENOLCK, errno.ENOSYS], ids=["flock", "ENOLCK", "ENOSYS"])
def any_file_system(request, monkeypatch) -> bool:
    """Whether the kernel has locks."""
    if request.param:
        answer_flock(monkeypatch, request.param)
    return not request.param


@pytest.fixture
def no_flock(monkeypatch) -> None:
    answer_flock(monkeypatch, errno.ENOLCK)


def answer_flock(monkeypatch, code: int) -> None:
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


def leave(folder: Path, owner: dict, age_s: float = 0.0) -> Path:
    """An owner file that was last touched so long ago."""
    path = folder / "lock-owner"
    path.write_text(json.dumps(owner))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_lock_holds_for_one_until_it_is_closed_and_leaves_one_file(any_file_system, tmp_path):
    for _ in range(2):
        lock = FolderLock(tmp_path / "lock")
        assert lock.is_held
        with pytest.raises(LockedError):
            FolderLock(tmp_path / "lock")
        lock.close()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_run_folder_in_use_is_one_line_and_free_afterwards(any_file_system, tmp_path):
    with RunFolder.open(tmp_path, Config()) as run:
        run.finish("demos", 1.0, {})
        with pytest.raises(UserError, match="is in use by .*process.*choose another --out"):
            RunFolder.open(tmp_path, Config())
    with RunFolder.open(tmp_path, Config()) as run:
        assert run.is_done("demos")


def test_the_lock_of_a_process_that_was_killed_is_taken_over_at_once(no_flock, tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=f"process {holder.pid} on "):
            FolderLock(tmp_path / "lock")
        holder.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # ended, and its number not yet free
        FolderLock(tmp_path / "lock").close()


def test_a_number_that_another_process_has_got_since_is_no_owner(no_flock, tmp_path):
    lock = FolderLock(tmp_path / "lock")
    owner = json.loads((tmp_path / "lock-owner").read_text())
    lock.close()
    leave(tmp_path, owner | {"started": str(int(owner["started"]) - 1)})
    FolderLock(tmp_path / "lock").close()


def test_an_owner_on_another_machine_lives_as_long_as_its_heartbeats(any_file_system, tmp_path):
    leave(tmp_path, OTHER_MACHINE, age_s=STALE_S / 2)
    with pytest.raises(LockedError, match="process 1 on node-7"):
        FolderLock(tmp_path / "lock")
    leave(tmp_path, OTHER_MACHINE, age_s=2 * STALE_S)
    FolderLock(tmp_path / "lock").close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"pid": "x"}'])
def test_a_damaged_owner_file_counts_by_its_age(no_flock, tmp_path, content):
    path = leave(tmp_path, {})
    path.write_bytes(content)
    with pytest.raises(LockedError):
        FolderLock(tmp_path / "lock")
    os.utime(path, (0, 0))
    FolderLock(tmp_path / "lock").close()


def test_heartbeats_keep_a_lock_from_going_stale(no_flock, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "HEARTBEAT_S", 0.01)
    lock = FolderLock(tmp_path / "lock")
    os.utime(tmp_path / "lock-owner", (0, 0))
    deadline = time.monotonic() + 60
    while not (tmp_path / "lock-owner").stat().st_mtime:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.close()


def test_whoever_was_taken_over_knows_and_leaves_the_new_owner_alone(no_flock, tmp_path):
    with RunFolder.open(tmp_path, Config()) as run:
        (tmp_path / ".lock-owner").write_text(json.dumps(OTHER_MACHINE))
        with pytest.raises(UserError, match="another process has taken the folder over"):
            run.finish("demos", 1.0, {})
    assert json.loads((tmp_path / ".lock-owner").read_text()) == OTHER_MACHINE


@pytest.mark.parametrize("can_link", [True, False])
def test_of_many_that_take_over_at_once_one_succeeds(tmp_path, monkeypatch, can_link):
    if not can_link:

        def link(source, path):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    path, barrier = leave(tmp_path, OTHER_MACHINE, age_s=2 * STALE_S), threading.Barrier(8)

    def take(_: int) -> OwnerFile | None:
        barrier.wait()
        try:
            return OwnerFile(path)
        except LockedError:
            return None

    with ThreadPoolExecutor(8) as threads:
        owners = [owner for owner in threads.map(take, range(8)) if owner is not None]
    assert len([owner for owner in owners if owner.is_ours()]) == len(owners) == 1
    owners[0].close()
    assert not list(tmp_path.iterdir())
