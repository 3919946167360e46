"""What a person at the robot's keyboard says: success, failure, or stop."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from wmpo_client.safety import SafeRobot

VERDICTS = {"y": True, "n": False}
STOP = " "
HELP = "y success, n failure, space stop"


class OperatorKeys:
    """Listens in a thread of its own from `start` on. Keys between two episodes are of no use, and forgotten.

    read: waits for a key and returns it; "": there will be none any more. For tests, or another kind of button.
    """

    def __init__(self, read: Callable[[], str]):
        self._read, self._guard = read, threading.Condition()
        self._verdict: bool | None = None
        self._robot: SafeRobot | None = None
        self._thread = threading.Thread(target=self._listen, name="operator keys", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def begin(self, robot: SafeRobot) -> None:
        """An episode begins: its verdict is open, and this is the robot that a stop stops."""
        with self._guard:
            self._verdict, self._robot = None, robot

    def end(self) -> None:
        with self._guard:
            self._robot = None

    def verdict(self, seconds: float = 0.0) -> bool | None:
        """Of the episode that goes on, or None if there is none within this time."""
        with self._guard:
            self._guard.wait_for(lambda: self._verdict is not None, seconds)
            return self._verdict

    def press(self, key: str) -> None:
        """The last key counts; a stop needs no episode to be waited for, and is never kept waiting by one."""
        with self._guard:
            robot = self._robot
            if robot is not None and key in VERDICTS:
                self._verdict = VERDICTS[key]
                self._guard.notify_all()
        if robot is not None and key == STOP:
            robot.stop()

    def _listen(self) -> None:
        while True:
            key = self._read()
            if not key:
                return
            self.press(key.lower())


@contextmanager
def terminal_keys() -> Iterator[OperatorKeys]:
    """Single keys of this terminal, without Enter; where there is no terminal, the first character of each line."""
    if not sys.stdin.isatty():
        keys = OperatorKeys(lambda: sys.stdin.readline()[:1])
        keys.start()
        yield keys
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        keys = OperatorKeys(lambda: sys.stdin.read(1))
        keys.start()
        yield keys
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
