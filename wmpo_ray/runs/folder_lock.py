"""A lock on a folder that holds for one process at a time, on file systems with flock and on those without.

flock is let go of by the kernel whenever its process ends. Where a file system has none (Lustre without `-o flock`, some
network and FUSE mounts), a second file serves as the lock: it is created exclusively, names its owner and is touched by
a thread while the owner lives. One that was not touched for `STALE_S` is taken over.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
from pathlib import Path
from typing import TextIO

HEARTBEAT_S = 5.0
STALE_S = 60.0  # longer than a machine under load, or an attribute cache of a network file system, delays a heartbeat
ENDED = ("Z", "X")  # states of a process that has ended and waits for its parent to reap it
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LockedError(Exception):
    """Another process holds the lock; says which one, as far as that is known."""


class FolderLock:
    """Held from construction to `close`. `path` is the file of the lock, which stays; made where it is missing.

    Raises LockedError where another process holds it, OSError where the file cannot be written.
    """

    def __init__(self, path: Path):
        self._file = open(path, "a")  # noqa: SIM115  closed with the lock
        self._owner: OwnerFile | None = None
        try:
            owner_path = path.with_name(f"{path.name}-owner")
            if _flock(self._file):
                _require_dead(owner_path)  # of a machine that mounts the same folder without flock
            else:
                self._owner = OwnerFile(owner_path)
        except BaseException:
            self._file.close()
            raise

    @property
    def is_held(self) -> bool:
        """False once another process has taken the lock over, after this one was suspended for too long."""
        return self._owner is None or self._owner.is_ours()

    def close(self) -> None:
        if self._owner is not None:
            self._owner.close()
            self._owner = None
        self._file.close()


class OwnerFile:
    """A file that exists while its owner lives, for file systems without flock."""

    def __init__(self, path: Path):
        self._path = path
        self._id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
        self._ended = threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def is_ours(self) -> bool:
        return _read(self._path).get("id") == self._id

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        if self.is_ours():
            self._path.unlink(missing_ok=True)

    def _take(self) -> None:
        """Link a complete file into place: any reader sees its owner, and linking to an existing name fails."""
        mine = self._path.with_name(f"{self._path.name}.{self._id}")
        facts = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid()}
        try:
            mine.write_text(json.dumps(facts | {"machine": _machine(), "started": _started(os.getpid())}))
            for _ in range(3):  # the owner may end during the check
                if _create(mine, self._path):
                    return
                self._remove_dead()
            raise LockedError("another process")
        finally:
            mine.unlink(missing_ok=True)

    def _remove_dead(self) -> None:
        """Raises LockedError where the owner lives. Of several processes that find it dead, one at a time may remove it."""
        _require_dead(self._path)
        guard = self._path.with_name(f"{self._path.name}.taking-over")
        try:
            if _now(guard) - guard.stat().st_mtime > STALE_S:
                guard.unlink(missing_ok=True)  # of a process that ended in between
        except FileNotFoundError:
            pass
        try:
            open(guard, "x").close()
        except FileExistsError:
            raise LockedError("another process") from None
        try:
            _require_dead(self._path)  # again: another process may have been faster
            self._path.unlink(missing_ok=True)
        finally:
            guard.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                if self.is_ours():
                    os.utime(self._path)
            except OSError:
                pass  # the next heartbeat tries again; until then the last one counts


def _create(source: Path, path: Path) -> bool:
    """Give `source` the name `path` as well, unless that is taken; whether it was free."""
    try:
        os.link(source, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK):
            raise
    try:  # a file system without hard links
        with open(path, "x") as file:
            file.write(source.read_text())
        return True
    except FileExistsError:
        return False


def _flock(file: TextIO) -> bool:
    """Take the kernel's lock; False where the file system has none. Raises LockedError where another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockedError("another process") from None
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return False
    return True


def _require_dead(path: Path) -> None:
    """Raises LockedError where the owner that an owner file names lives; without a file there is no owner."""
    try:
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return
    owner = _read(path)
    pid = owner.get("pid")
    if isinstance(pid, int) and owner.get("machine") == _machine() != "":
        # A reused pid belongs to a process with a different start time.
        lives = _started(pid) == owner.get("started")
    else:
        lives = _now(path) - touched <= STALE_S
    if lives:
        raise LockedError(f"process {owner.get('pid', '?')} on {owner.get('host', 'another machine')}")


def _now(path: Path) -> float:
    """The time by the clock of the file system: the one that heartbeats are stamped with."""
    probe = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    """Where process numbers mean the same: one boot of one machine, and one container of it; "" if that is not known."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine began, in ticks since the boot; "" if none of this number runs."""
    try:
        # The name in parentheses may hold anything; state and start are fields 1 and 20 after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ENDED else fields[19]


def _read(path: Path) -> dict:
    try:
        owner = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}
