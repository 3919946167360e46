"""Profiles a call: named spans and counts, recorded inside `record()`.

    with record() as recording:
        policy.act(...)          # inside: `with span("policy"): ...`

Without a recording, the cost is one read of a context variable.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch


class Span(NamedTuple):
    """A stretch of time: `start` in seconds since the epoch, so that those of several machines can be laid side by side."""

    name: str
    start: float
    seconds: float
    depth: int = 0  # spans around this one


@dataclass
class Recording:
    spans: list[Span] = field(default_factory=list)  # in the order in which they ended
    counts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    depth: int = 0  # spans that are open

    def seconds(self) -> dict[str, float]:
        """Name -> seconds, of the outermost spans only: together they are no more than the time that passed."""
        sums: dict[str, float] = defaultdict(float)
        for each in self.spans:
            if each.depth == 0:
                sums[each.name] += each.seconds
        return dict(sums)


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def record() -> Iterator[Recording]:
    """Collect the spans and counts inside the block, in this thread."""
    recording = Recording()
    token = _recording.set(recording)
    try:
        yield recording
    finally:
        _recording.reset(token)


@contextmanager
def span(name: str, device: torch.device | None = None) -> Iterator[None]:
    """Name what the block does; on a GPU its work is waited for, else the next block would seem to do it."""
    recording = _recording.get()
    if recording is None:
        yield
        return
    start, began = time.time(), time.perf_counter()
    recording.depth += 1
    try:
        yield
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
    finally:
        recording.depth -= 1
        recording.spans.append(Span(name, start, time.perf_counter() - began, recording.depth))


def count(name: str, amount: float) -> None:
    """Add to a number that the recording keeps, such as bytes."""
    if (recording := _recording.get()) is not None:
        recording.counts[name] += amount
