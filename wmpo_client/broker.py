"""An action for every tick of the robot's clock: the next chunk is asked for before the present one is used up.

A chunk that was asked for at tick t speaks of the ticks t, t + 1, ...: what it says of those that were acted while it was on
its way is dropped. A tick in which the robot was held is none of them: it is where it was, and what the chunk says first is
still to be done. What the running chunk and the new one both say of the ticks to come can be blended (real-time
chunking), so that a hand that was on its way is not torn to another one:

    wait    act a chunk to its end, then hold still until the next one is there
    switch  go over to the new chunk as soon as it is there
    blend   the same, with weights that go from the running chunk to the new one over their overlap
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Callable

import numpy as np

from wmpo_client.refusals import ClientError
from wmpo_client.served_policy import Chunk, Seen

MODES = ("wait", "switch", "blend")


@dataclass(frozen=True)
class Due:
    """The action of a tick, and the chunk that it is from."""

    action: np.ndarray  # [D] float32
    chunk: Chunk


def blended(running: np.ndarray, new: np.ndarray) -> np.ndarray:
    """New actions [n, D] whose first ones go over from the running ones [m, D] of the same ticks, linearly."""
    overlap = min(len(running), len(new))
    if not overlap:
        return new.copy()
    weights = (np.arange(1, overlap + 1, dtype=np.float32) / (overlap + 1))[:, None]
    result = new.copy()
    result[:overlap] = (1 - weights) * running[:overlap] + weights * new[:overlap]
    return result


class ChunkPlan:
    """What to do in each tick of an episode, without a clock of its own. `ask_ahead`: as of `ChunkBroker`."""

    def __init__(self, mode: str = "wait", ask_ahead: int = 2):
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: known are {', '.join(MODES)}")
        if ask_ahead < 1:
            raise ValueError(f"ask_ahead={ask_ahead}: it must be 1 or more")
        self.mode, self.ask_ahead = mode, 0 if mode == "wait" else ask_ahead
        self.begin()

    def begin(self) -> None:
        """A new episode."""
        self._tick, self.is_asked = 0, False
        self._plan: np.ndarray = np.zeros((0, 0), np.float32)  # actions of the ticks from the present one on
        self._chunk: Chunk | None = None

    @property
    def asks(self) -> bool:
        """Whether the next chunk is to be asked for in this tick."""
        return len(self._plan) <= self.ask_ahead and not self.is_asked

    def ask(self) -> int:
        """Returns the tick, which `take` wants to know."""
        self.is_asked = True
        return self._tick

    def take(self, asked_at: int, chunk: Chunk) -> None:
        """A chunk that was asked for has come."""
        self.is_asked = False
        new = chunk.actions[self._tick - asked_at :]
        if not len(new):
            return  # it came when all of its ticks were over: another one is asked for
        self._plan = blended(self._plan, new) if self.mode == "blend" else new
        self._chunk = chunk

    def next(self) -> Due | None:
        """The action of this tick, after which it is over; None: hold still."""
        if not len(self._plan) or self._chunk is None:
            return None
        due = Due(self._plan[0], self._chunk)
        self._plan = self._plan[1:]
        self._tick += 1
        return due


class ChunkBroker:
    """Asks in a thread of its own. `ask_ahead`: ticks before the end of a chunk at which the next one is asked for.

    `act`: what a chunk is asked of, such as `ServedPolicy.act`. Errors of it are raised from `next`.
    """

    def __init__(self, act: Callable[[Seen], Chunk], mode: str = "wait", ask_ahead: int = 2):
        self._act, self._plan = act, ChunkPlan(mode, ask_ahead)
        self._lock = threading.Condition()
        self._question: tuple[int, int, Seen] | None = None  # (episode, tick, what was seen)
        self._arrived: tuple[int, int, Chunk] | None = None
        self._error: Exception | None = None
        self._closed = False
        self._episode = 0
        self.begin()
        self._thread = threading.Thread(target=self._work, name="chunk broker", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """A new episode: chunks that are still on their way are of no use any more."""
        with self._lock:
            self._episode += 1
            self._plan.begin()
            self._question = self._arrived = self._error = None

    def next(self, see: Callable[[], Seen]) -> Due | None:
        """The action of this tick, once per tick; None: there is none, hold still.

        see: called where a chunk has to be asked for. Raises what asking raised.
        """
        with self._lock:
            self._take_arrived()
            asks = self._plan.asks
        if asks:
            seen = see()
            with self._lock:
                self._question = (self._episode, self._plan.ask(), seen)
                self._lock.notify_all()
        with self._lock:
            return self._plan.next()

    def wait(self, seconds: float) -> bool:
        """Wait for a chunk that was asked for; whether it, or an error, is there."""
        with self._lock:
            return self._lock.wait_for(lambda: self._arrived is not None or self._error is not None, seconds)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def _take_arrived(self) -> None:
        if self._error is not None:
            error, self._error, self._plan.is_asked = self._error, None, False
            raise error
        if self._arrived is not None:
            _, asked_at, chunk = self._arrived
            self._arrived = None
            self._plan.take(asked_at, chunk)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closed or self._question is not None)
                if self._closed or self._question is None:
                    return
                episode, tick, seen = self._question
                self._question = None
            chunk, error = None, None
            try:
                chunk = self._act(seen)
            except ClientError as caught:
                error = caught
            with self._lock:
                if episode == self._episode:
                    self._error = error
                    if chunk is not None:
                        self._arrived = (episode, tick, chunk)
                self._lock.notify_all()
