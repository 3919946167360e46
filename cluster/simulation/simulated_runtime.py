"""A cluster inside a virtual clock: the real main loop at any size and under any fault, in milliseconds.

Every call takes a service time that is drawn; the calls of one actor run one after the other, in order, heartbeats are
answered at once, and `wait` moves the clock to the next answer. Nothing happens between two waits, there are no threads,
and everything drawn comes from one seed: the same seed is the same history.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import ActorLostError, Answer, Beat, InputLostError, ProcessInfo
from cluster.simulation.simulated_parts import Call, Faults, Node, SimulatedActor, SimulatedRef

ServiceTime = Callable[[str, str, random.Random], float]  # (class, method, generator) -> seconds
LATENCY_S = 0.001  # of a heartbeat and of the news of a death


class SimulatedRuntime:
    """Implements `Runtime`.

    Args:
        stand_ins: real actor class -> what is constructed in its place, with the same arguments
        service_time: seconds that a call takes; methods "locate" and "__init__" are placement and construction
        at_wait: called at every wait, with all events before it handled
        chunks_per_call: after how many equal parts of a call the actor looks whether it is still wanted
    """

    chunks_per_call = 8

    def __init__(
        self,
        stand_ins: Mapping[type, Callable[..., Any]],
        service_time: ServiceTime,
        seed: int = 0,
        faults: Faults | None = None,
        num_nodes: int = 1,
        at_wait: Callable[[], None] = lambda: None,
    ):
        self.rng = random.Random(seed)
        self.nodes = [Node(f"node-{number}") for number in range(num_nodes)]
        self.actors: list[SimulatedActor] = []  # those that are alive
        self.draining: dict[str, float] = {}  # node -> when it goes
        self.num_answers = 0  # that `wait` has reported
        self.num_read = 0  # of them, by `get`
        self._stand_ins, self._service_time, self._at_wait = stand_ins, service_time, at_wait
        self._faults = faults or Faults()
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple]] = []
        self._order = count()
        self._pids = count(1)
        self._faults.begin(self)

    # -- Runtime -------------------------------------------------------------------------------------------------

    @property
    def available(self) -> dict[str, float]:
        return {"CPU": float("inf"), "GPU": float("inf")}

    @property
    def doors(self) -> dict[str, Any]:
        return {}

    def clock(self) -> float:
        return self._now

    def spawn(self, cls: type, *args: Any, resources: Resources, name: str) -> SimulatedActor:
        nodes = [node for node in self.nodes if node.name not in self.draining] or self.nodes
        actor = SimulatedActor(cls, args, name, self.rng.choice(nodes))
        self.actors.append(actor)
        return actor

    def locate(self, actor: SimulatedActor) -> SimulatedRef:
        ref = SimulatedRef(None, actor)
        actor.owed.append(ref)
        self.after(
            self._draw(actor, "locate"), self._settle, [ref], [ProcessInfo(next(self._pids), actor.node.name)], None
        )
        return ref

    def has_place(self, actor: SimulatedActor) -> bool:
        return True

    def build(self, actor: SimulatedActor) -> SimulatedRef:
        return self._submit(actor, "__init__", actor.args, 1)[0]

    def beat(self, actor: SimulatedActor) -> SimulatedRef:
        ref = SimulatedRef(None, actor)
        actor.beats.append(ref)
        self.after(LATENCY_S, self._answer_beats, actor)
        return ref

    def call(self, actor: SimulatedActor, method: str, *args: Any, num_returns: int = 1) -> Any:
        refs = self._submit(actor, method, args, num_returns)
        return refs if num_returns > 1 else refs[0]

    def tell(self, actor: SimulatedActor, method: str, *args: Any) -> None:
        """The running call ends at its next chunk if the actor says so then."""
        if not actor.is_alive or actor.instance is None:
            return
        getattr(actor.instance, method)(*args)
        call = actor.running
        if call is not None and not call.is_over and actor.instance.leaves_early(call.method, *call.args):
            self.after(self._draw(actor, call.method) / self.chunks_per_call, self._finish, call)

    def beside(self, actor: SimulatedActor, method: str, *args: Any) -> SimulatedRef:
        ref = SimulatedRef(actor.node, actor)
        if actor.is_alive:
            actor.owed.append(ref)
            self.after(self._draw(actor, method), self._finish_beside, Call(actor, method, args, [ref]))
        else:
            self.after(LATENCY_S, self._settle, [ref], None, ActorLostError(f"{actor.name} is dead"))
        return ref

    def wait(self, refs: list[SimulatedRef], timeout_s: float | None = None) -> list[SimulatedRef]:
        self._at_wait()
        deadline = float("inf") if timeout_s is None else self._now + timeout_s
        while not any(ref.is_ready for ref in refs):
            if not self._events or self._events[0][0] > deadline:
                assert timeout_s is not None, "waiting for answers that never come"
                self._now = deadline
                return []
            self._now = self._events[0][0]
            while self._events and self._events[0][0] <= self._now:
                _, _, happen, about = heapq.heappop(self._events)
                happen(*about)
        ready = [ref for ref in refs if ref.is_ready]
        self.num_answers += len(ready)
        return ready

    def get(self, ref: SimulatedRef) -> Any:
        self.num_read += 1
        if ref.error is not None:
            raise ref.error
        if ref.is_lost:
            raise InputLostError("the node that held the answer is gone")
        return ref.value

    def answer(self, ref: SimulatedRef) -> Answer:
        return Answer(self.get(ref))

    def put(self, value: Any) -> SimulatedRef:
        return SimulatedRef(None, None, value, is_ready=True)

    def kill(self, actor: SimulatedActor, process: ProcessInfo | None = None) -> None:
        self.end(actor, is_given_up=True)

    def stop(self, actor: SimulatedActor) -> None:
        self.end(actor, is_given_up=True)

    def draining_nodes(self) -> dict[str, float]:
        return {node: at - self._now for node, at in self.draining.items()}

    def shutdown(self) -> None:
        self._events.clear()

    # -- what happens to actors and nodes ------------------------------------------------------------------------

    def after(self, delay_s: float, happen: Callable[..., None], *about: Any) -> None:
        heapq.heappush(self._events, (self._now + delay_s, next(self._order), happen, about))

    def end(self, actor: SimulatedActor, is_given_up: bool = False) -> None:
        """The process of an actor is gone: its calls are answered by ActorLostError, except for a late answer."""
        if not actor.is_alive:
            return
        actor.is_alive, actor.is_given_up = False, is_given_up
        self.actors.remove(actor)
        unanswered = actor.beats + actor.owed
        call, actor.running = actor.running, None
        if call is not None:
            late_s = None
            if self._faults.takes_effect(call):
                values, error = self._execute(call)
                late_s = self._faults.late_s(call) if is_given_up and error is None else None
                if late_s is not None:
                    self.after(late_s, self._settle, call.refs, values, None)
            unanswered += call.refs if late_s is None else []
        for queued in actor.calls:
            unanswered += queued.refs
        actor.calls, actor.beats, actor.owed = deque(), [], []
        self.after(LATENCY_S, self._settle, unanswered, None, ActorLostError(f"{actor.name} died"))

    def stop_for_a_while(self, actor: SimulatedActor, seconds: float | None) -> None:
        """It answers nothing and gets no further; None: until it is killed."""
        actor.is_stopped = True
        if seconds is not None:
            self.after(seconds, self._go_on, actor)

    def lose_node(self, node: Node) -> None:
        """A node goes with all actors on it and with what does not outlive it; another one takes its place."""
        node.is_lost = True
        self.draining.pop(node.name, None)
        self.nodes[self.nodes.index(node)] = Node(f"{node.name}+")
        for actor in [actor for actor in self.actors if actor.node is node]:
            self.end(actor)

    # -- calls ---------------------------------------------------------------------------------------------------

    def _draw(self, actor: SimulatedActor, method: str) -> float:
        return self._service_time(actor.cls.__name__, method, self.rng)

    def _submit(self, actor: SimulatedActor, method: str, args: tuple, num_returns: int) -> list[SimulatedRef]:
        refs = [SimulatedRef(actor.node, actor) for _ in range(num_returns)]
        if not actor.is_alive:
            self.after(LATENCY_S, self._settle, refs, None, ActorLostError(f"{actor.name} is dead"))
            return refs
        call = Call(actor, method, args, refs)
        for part, ref in enumerate(refs):
            ref.survives = self._faults.survives(call, part)
        actor.calls.append(call)
        self._start_next(actor)
        return refs

    def _start_next(self, actor: SimulatedActor) -> None:
        if actor.running is not None or not actor.calls:
            return
        for arg in actor.calls[0].args:
            if isinstance(arg, SimulatedRef) and not arg.is_ready:
                arg.waiting.append(actor)
                return
        actor.running = call = actor.calls.popleft()
        self.after(self._draw(actor, call.method), self._finish, call)

    def _finish(self, call: Call) -> None:
        actor = call.actor
        call.is_over = True
        if actor.running is not call or actor.is_stopped:
            return
        actor.running = None
        values, error = self._execute(call)
        seconds = self._faults.transport_s(call)
        if seconds == 0:
            self._settle(call.refs, values, error)
        elif seconds is not None:
            self.after(seconds, self._settle, call.refs, values, error)
        else:  # lost on its way; the death of the actor is still heard of
            actor.owed += call.refs
        self._start_next(actor)

    def _finish_beside(self, call: Call) -> None:
        """Answered by the death of its actor, if that came first."""
        if call.actor.is_alive and call.actor.is_stopped:
            self.after(self._draw(call.actor, call.method), self._finish_beside, call)
        elif call.actor.is_alive:
            self._settle(call.refs, *self._execute(call))

    def _execute(self, call: Call) -> tuple[Any, Exception | None]:
        """The values of its references, or what it raised."""
        actor = call.actor
        parts = [arg for arg in call.args if isinstance(arg, SimulatedRef)]
        if any(part.is_lost or part.error for part in parts):
            return None, InputLostError(f"{actor.name}: what {call.method} was given is gone")
        args = [arg.value if isinstance(arg, SimulatedRef) else arg for arg in call.args]
        try:
            if call.method == "__init__":
                actor.instance = self._stand_ins[actor.cls](*args)
                return [0.0], None
            for _ in range(self._faults.num_runs(call)):
                result = getattr(actor.instance, call.method)(*args)
        except AssertionError:  # a law that a stand-in watches over: no fault of the actor
            raise
        except Exception as error:  # noqa: BLE001  raised when the value is read, as Ray does
            return None, error
        return (result if len(call.refs) > 1 else [result]), None

    def _settle(self, refs: list[SimulatedRef], values: Any, error: Exception | None) -> None:
        for place, ref in enumerate(refs):
            if ref.is_ready:
                continue
            ref.is_ready, ref.error = True, error
            ref.value = None if error else values[place]
            for actor in ref.waiting:
                self._start_next(actor)
            ref.waiting = []

    # -- heartbeats ----------------------------------------------------------------------------------------------

    def _answer_beats(self, actor: SimulatedActor) -> None:
        if not actor.is_alive or actor.is_stopped:
            return
        self._settle(actor.beats, [Beat(getattr(actor.instance, "num_beats", 0))] * len(actor.beats), None)
        actor.beats = []

    def _go_on(self, actor: SimulatedActor) -> None:
        actor.is_stopped = False
        if not actor.is_alive:
            return
        self._answer_beats(actor)
        if actor.running is not None and actor.running.is_over:
            self._finish(actor.running)
