"""Laws of the simulated cluster itself: its clock, the order of calls, what a death leaves behind."""

from __future__ import annotations

import pytest

from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import ActorLostError, InputLostError
from cluster.simulation.simulated_parts import Faults
from cluster.simulation.simulated_runtime import SimulatedRuntime


class Adder:
    """Stands in for an actor."""

    def __init__(self, total: int):
        self.total, self.num_beats = total, 0

    def add(self, number: int) -> int:
        self.total += number
        self.num_beats += 1
        return self.total

    def both(self) -> tuple[int, int]:
        return self.total, -self.total


class Frail(Faults):
    """Whatever runs when its actor dies was executed; nothing outlives its node."""

    def takes_effect(self, call) -> bool:
        return True

    def late_s(self, call) -> float | None:
        return 2.0

    def survives(self, call, part: int) -> bool:
        return False


def make(faults: Faults | None = None, seconds: float = 1.0) -> SimulatedRuntime:
    return SimulatedRuntime({Adder: Adder}, lambda cls, method, rng: seconds, faults=faults)


def spawn(runtime: SimulatedRuntime, total: int = 0):
    actor = runtime.spawn(Adder, total, resources=Resources(), name="adder-0")
    wait_all(runtime, [runtime.build(actor)])
    return actor


def wait_all(runtime: SimulatedRuntime, refs: list) -> None:
    while not all(ref.is_ready for ref in refs):
        runtime.wait([ref for ref in refs if not ref.is_ready])


def test_calls_of_one_actor_run_one_after_the_other_and_of_two_at_once():
    runtime = make()
    first, second = spawn(runtime), spawn(runtime)
    start = runtime.clock()
    refs = [runtime.call(first, "add", 1), runtime.call(first, "add", 10), runtime.call(second, "add", 5)]
    assert runtime.wait(refs) == [refs[0], refs[2]] and runtime.clock() == start + 1
    wait_all(runtime, refs)
    assert [runtime.get(ref) for ref in refs] == [1, 11, 5] and runtime.clock() == start + 2


def test_a_call_waits_for_what_it_is_given():
    runtime = make()
    first, second = spawn(runtime), spawn(runtime)
    start = runtime.clock()
    answer = runtime.call(second, "add", runtime.call(first, "add", 7))
    wait_all(runtime, [answer])
    assert runtime.get(answer) == 7 and runtime.clock() == start + 2


def test_a_wait_ends_with_its_timeout_and_the_clock_moves_with_it():
    runtime = make(seconds=5.0)
    actor = spawn(runtime)
    start = runtime.clock()
    ref = runtime.call(actor, "add", 1)
    assert runtime.wait([ref], 2.0) == [] and runtime.clock() == start + 2
    assert runtime.wait([], 1.0) == [] and runtime.clock() == start + 3


def test_heartbeats_are_answered_while_an_actor_works_but_not_while_it_is_stopped():
    runtime = make(seconds=5.0)
    actor = spawn(runtime)
    runtime.call(actor, "add", 1)
    beat = runtime.beat(actor)
    assert runtime.wait([beat], 1.0) == [beat] and runtime.get(beat).num_beats == 0
    runtime.stop_for_a_while(actor, 10.0)
    silent = runtime.beat(actor)
    assert runtime.wait([silent], 9.0) == []
    assert runtime.wait([silent], 9.0) == [silent]


def test_what_a_dead_actor_owes_is_answered_by_an_error():
    runtime = make()
    actor = spawn(runtime)
    refs = [runtime.call(actor, "add", 1), runtime.call(actor, "add", 2), runtime.beat(actor)]
    runtime.end(actor)
    wait_all(runtime, refs)
    refs.append(runtime.call(actor, "add", 3))
    wait_all(runtime, refs)
    for ref in refs:
        with pytest.raises(ActorLostError, match="adder-0"):
            runtime.get(ref)


def test_an_actor_that_was_given_up_may_still_answer():
    runtime = make(Frail())
    actor = spawn(runtime)
    ref = runtime.call(actor, "add", 1)
    runtime.kill(actor)
    assert runtime.wait([ref], 1.9) == []
    assert runtime.wait([ref], 0.2) == [ref] and runtime.get(ref) == 1


def test_values_go_with_their_node_and_the_next_node_is_another_one():
    runtime = make(Frail())
    actor = spawn(runtime)
    parts = runtime.call(actor, "both", num_returns=2)
    wait_all(runtime, parts)
    runtime.lose_node(actor.node)
    other = spawn(runtime)
    answer = runtime.call(other, "add", parts[1])
    wait_all(runtime, [answer])
    for ref in (parts[0], answer):
        with pytest.raises(InputLostError):
            runtime.get(ref)
    assert other.node is not actor.node


def test_the_same_seed_is_the_same_history():
    def clock(seed: int) -> float:
        runtime = SimulatedRuntime({Adder: Adder}, lambda cls, method, rng: rng.random(), seed)
        actor = spawn(runtime)
        wait_all(runtime, [runtime.call(actor, "add", 1)])
        return runtime.clock()

    assert clock(1) == clock(1) != clock(2)
