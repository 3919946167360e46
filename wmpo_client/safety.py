"""What stands between any policy and the motors. It is set where the robot is; nothing that comes over the network changes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

import numpy as np

STOP_PATIENCE_S = 0.1  # for an action that is being made


@dataclass(frozen=True)
class SafetyLimits:
    """Per dimension of an action, in its own unit; a dimension that has no limit is `inf`.

    low, high: of the action. step: between two actions in a row, where an action is a place; of the action itself, where it
    is a motion (`is_relative`). velocity: of the same per second, whatever the rate is at which actions come.
    """

    low: Sequence[float]
    high: Sequence[float]
    step: Sequence[float]
    velocity: Sequence[float]
    is_relative: bool = False
    watchdog_s: float = 0.5  # without an action, after which the robot is held

    def __post_init__(self) -> None:
        sizes = {len(each) for each in (self.low, self.high, self.step, self.velocity)}
        if len(sizes) != 1:
            raise ValueError(f"limits of {sorted(sizes)} dimensions; all four need one number for each dimension")
        if not all(low < high for low, high in zip(self.low, self.high)):
            raise ValueError("limits: every `low` must be below its `high`")
        if not all(each > 0 for each in (*self.step, *self.velocity, self.watchdog_s)):
            raise ValueError("limits: `step`, `velocity` and `watchdog_s` must be above 0")


class Stopped(Exception):
    """The robot was stopped, and stays so until `SafeRobot.resume` is called where it stands."""


class SafeRobot:
    """Bounds every action, holds when none comes in time, and stops at once from any thread.

    apply: moves the robot by an action [D]. hold: makes it keep its place; called by the watchdog's thread too. An
    exception of `apply` stops the robot.
    """

    def __init__(
        self,
        apply: Callable[[np.ndarray], None],
        hold: Callable[[], None],
        limits: SafetyLimits,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._apply, self._hold, self.limits, self._clock = apply, hold, limits, clock
        self._guard = threading.RLock()  # of the motors: one command at a time
        self._stop = threading.Event()
        self._last: np.ndarray | None = None
        self._moved_at, self._is_holding = clock(), True
        self.num_clipped = self.num_holds = 0
        self._ended = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watchdog.start()

    def act(self, action: np.ndarray) -> np.ndarray:
        """Move by an action [D], bounded; returns what was executed. Raises Stopped, ValueError for what is no action."""
        action = np.asarray(action, np.float64)
        if action.shape != (len(self.limits.low),) or not np.isfinite(action).all():
            self.stop()
            raise ValueError(f"an action of shape {action.shape} that is not {len(self.limits.low)} finite numbers")
        with self._guard:
            if self._stop.is_set():
                raise Stopped("the robot is stopped")
            now = self._clock()
            allowed = self._bounded(action, now - self._moved_at)
            self.num_clipped += int(not np.array_equal(allowed, action))
            try:
                self._apply(allowed.astype(np.float32))
            except BaseException:
                self.stop()
                raise
            self._last, self._moved_at, self._is_holding = allowed, now, False
            return allowed.astype(np.float32)

    def _bounded(self, action: np.ndarray, seconds: float) -> np.ndarray:
        limits = self.limits
        # A clock that stood still or went back, and a long pause, allow no more than a step.
        reach = np.asarray(limits.velocity, np.float64) * min(max(seconds, 0.0), limits.watchdog_s)
        reach = np.minimum(np.asarray(limits.step, np.float64), np.where(np.isfinite(reach), reach, np.inf))
        action = np.clip(action, limits.low, limits.high)
        if limits.is_relative:
            return np.clip(action, -reach, reach)
        return action if self._last is None else np.clip(action, self._last - reach, self._last + reach)

    def place(self, position: np.ndarray) -> None:
        """Where the robot is, in the unit of an action that is a place: the first action is bounded from there."""
        with self._guard:
            self._last, self._moved_at = np.asarray(position, np.float64), self._clock()

    def hold(self) -> None:
        """Keep the place until the next action."""
        with self._guard:
            self._hold_now()

    def stop(self) -> None:
        """From any thread, a signal handler too: no further action, and the robot is held, even if `apply` hangs."""
        self._stop.set()  # first: an action that waits for the guard is not made any more
        has_guard = self._guard.acquire(timeout=STOP_PATIENCE_S)
        try:
            self._hold()
        finally:
            if has_guard:
                self._guard.release()

    def resume(self) -> None:
        """Take actions again after a stop, at the robot and by a person."""
        with self._guard:
            self._moved_at = self._clock()
            self._stop.clear()

    @property
    def is_stopped(self) -> bool:
        return self._stop.is_set()

    def close(self) -> None:
        """Hold the robot and end the watchdog."""
        self._ended.set()
        self.hold()

    def _hold_now(self) -> None:
        self._is_holding = True
        self.num_holds += 1
        self._hold()

    def _watch(self) -> None:
        while not self._ended.wait(self.limits.watchdog_s / 5):
            self.check()

    def check(self) -> None:
        """What the watchdog does a few times within `watchdog_s`."""
        with self._guard:
            late = self._clock() - self._moved_at > self.limits.watchdog_s
            if late and not self._is_holding:
                self._hold_now()
