"""SIGTERM means: this machine is wanted, or the job is stopped. Everything is on the disk already; leave in time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

EXIT_PREEMPTED = 75  # "temporary failure" in sysexits.h: run the same command again
LEAVE_WITHIN_S = 2.0  # `ray job stop` kills after 3 s


class Preempted(BaseException):
    """What SIGTERM comes to in the main thread; unwinding lets go of the cluster, and nothing has to be saved."""


_leaving = threading.Event()


def is_leaving() -> bool:
    """Whether SIGTERM has come: only what others would miss is still worth the time."""
    return _leaving.is_set()


@contextmanager
def leave_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into `Preempted`. Whatever hangs while the block is left, the process ends in time."""

    def leave(_signal: int, _frame: object) -> None:
        _leaving.set()
        # The one exception that Ray's waits let through whole.
        raise KeyboardInterrupt

    _leaving.clear()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # Python's handlers wait for the main thread; the wake-up byte is written when the signal comes.
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(ours,), daemon=True).start()
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt:
        if is_leaving():
            raise Preempted from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(wakeup)
        if not is_leaving():
            theirs.close()


def end_now() -> NoReturn:
    """End this process as preempted, without what Python and Ray still do at an exit: it takes seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_PREEMPTED)


def _end_in_time(signals: socket.socket) -> None:
    while number := signals.recv(1):
        if number[0] == signal.SIGTERM:
            _leaving.set()  # the main thread may take a while to notice
            time.sleep(LEAVE_WITHIN_S)
            os._exit(EXIT_PREEMPTED)


def restart_on_crash(arguments: Sequence[str], restarts: int, report: Callable[[str], None]) -> int:
    """Run `wmpo` with these arguments in its own process, and again with --resume after a crash.

    User errors, interruptions and preemptions do not count as crashes. Returns the last exit code; a process
    that was ended by signal n counts as 128 + n, as in a shell.
    """
    command = [sys.executable, "-m", "wmpo_ray", *arguments]
    for left in range(restarts, -1, -1):
        process = subprocess.Popen(command)
        with _passed_on(process):
            code = process.wait()
        code = code if code >= 0 else 128 - code
        if code in (0, 2, 130, EXIT_PREEMPTED) or not left:
            return code
        command += [] if "--resume" in command else ["--resume"]
        report(f"the run ended with exit code {code}; resuming from its last checkpoint ({left - 1} more restarts)")
    raise AssertionError("unreachable")


@contextmanager
def _passed_on(process: subprocess.Popen) -> Iterator[None]:
    """Forward signals from this process to the run."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda n, _: process.send_signal(n)) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
