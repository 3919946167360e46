"""What a simulated cluster is made of: nodes, references, calls, actors, and what may befall them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Node:
    name: str
    is_lost: bool = False


@dataclass(eq=False, slots=True)
class SimulatedRef:
    """The answer of a call, or one of its `num_returns` parts."""

    node: Node | None  # that holds the value
    actor: SimulatedActor | None
    value: Any = None
    error: Exception | None = None
    is_ready: bool = False
    survives: bool = True  # the loss of the node that holds the value
    waiting: list[SimulatedActor] = field(default_factory=list)  # actors with a call that needs it

    @property
    def is_lost(self) -> bool:
        return not self.survives and self.node is not None and self.node.is_lost


@dataclass(eq=False, slots=True)
class Call:
    actor: SimulatedActor
    method: str  # "__init__": the constructor
    args: tuple
    refs: list[SimulatedRef]
    is_over: bool = False  # its service time


@dataclass(eq=False, slots=True)
class SimulatedActor:
    cls: type
    args: tuple
    name: str
    node: Node
    instance: Any = None
    calls: deque[Call] = field(default_factory=deque)
    running: Call | None = None
    beats: list[SimulatedRef] = field(default_factory=list)  # heartbeats not answered yet
    owed: list[SimulatedRef] = field(default_factory=list)  # what else is answered by its death at the latest
    is_alive: bool = True
    is_stopped: bool = False  # by a signal: silent, but not dead
    is_given_up: bool = False  # by the driver


class Faults:
    """What goes wrong, and how answers travel. This one: nothing does, at once."""

    def begin(self, runtime: Any) -> None:
        """Arrange what is to happen later, through `runtime.after`."""

    def transport_s(self, call: Call) -> float | None:
        """Seconds from the end of a call until its answer is there; None: it never comes."""
        return 0.0

    def num_runs(self, call: Call) -> int:
        """How often the actor gets to see a call. Each answer is that of the last run."""
        return 1

    def takes_effect(self, call: Call) -> bool:
        """Whether a call that was running when its actor died was executed."""
        return False

    def late_s(self, call: Call) -> float | None:
        """Seconds after its actor was killed until the answer to an executed call comes; None: it is lost."""
        return None

    def survives(self, call: Call, part: int) -> bool:
        """Whether one part of an answer outlives the node that it was computed on."""
        return True
