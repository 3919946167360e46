"""Weights reach every replica, over Ray: which payload goes to whom, and what a receiver's death does to the others."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import nn

from actors.replica import Replica
from cluster.host.connection import start_here
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.resources import Resources
from cluster.runtimes.runtime import ActorLostError
from cluster.runtimes.serial_runtime import SerialRuntime
from cluster.weights.delivery import GroupPublisher, LastStep, Offer, make_publisher
from cluster.workers.actor_pool import Worker
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.learner_types import StepFacts
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.policies.weight_exchange import WeightEncoder
from wmpo_ray.policies.weight_payload import (
    BroadcastError,
    WeightMismatchError,
    WeightPayload,
    WeightTransferError,
    weights_digest,
)

WIDTH = 2048  # 16 MiB of weights: more than the buffers of a connection hold
TIMEOUT_S = 120.0  # a machine that others keep busy starts processes slowly


class TinyReplica(Replica):
    """Knows which kinds of payload it was given."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        super().__init__(nn.Linear(WIDTH, WIDTH))
        self.kinds: list[str] = []

    def load_weights(self, payload: WeightPayload | None) -> WeightVersion:
        self.kinds.append("none" if payload is None else payload.kind)
        return super().load_weights(payload)

    def look(self) -> tuple[list[str], str]:
        """Kinds of payload since the last look, and the digest of the weights."""
        kinds, self.kinds = self.kinds, []
        return kinds, weights_digest(self.policy.state_dict())

    def work(self, begun: str, go_on: str) -> WeightVersion:
        """As long as it takes."""
        Path(begun).touch()
        while not Path(go_on).exists():
            time.sleep(0.01)
        return self.version


class Crew:
    """Replicas in processes of their own. They outlive a test: a process takes seconds to start."""

    def __init__(self, runtime: RayRuntime):
        self.runtime = runtime
        self.workers = [Worker("imagination", index) for index in range(3)]
        for worker in self.workers:
            self.start(worker)

    def start(self, worker: Worker) -> None:
        worker.actor = self.runtime.spawn(TinyReplica, resources=Resources(), name=worker.name)
        self.runtime.build(worker.actor)
        worker.digest = ""

    def get(self, ref: Any) -> Any:
        assert self.runtime.wait([ref], 2 * TIMEOUT_S), "no answer"
        return self.runtime.get(ref)

    def looks(self) -> list[tuple[list[str], str]]:
        return [self.get(self.runtime.call(worker.actor, "look")) for worker in self.workers]


class Learner:
    """Trains in this process, leaves its weights in the object store, and does what the main loop does with them."""

    def __init__(self, crew: Crew, **weights: Any):
        config = Config.model_validate({"weights": {"timeout_s": TIMEOUT_S, **weights}})
        self.crew = crew
        self.publisher: Any = make_publisher(config, crew.runtime)
        self.settings = config.weights
        self.policy = nn.Linear(WIDTH, WIDTH)
        self.restore()

    def restore(self) -> None:
        """As in a new process that read a checkpoint."""
        self.encoder = WeightEncoder(self.policy, self.settings, {"weight", "bias"})

    def offer(self, num_updates: int) -> None:
        with torch.no_grad():
            self.policy.weight[num_updates] += 1
        version, full, compact = self.encoder.encode(num_updates)
        put = self.crew.runtime.put
        last = self.encoder.last
        step = LastStep(StepFacts(last.base), put(last)) if last is not None else None
        self.publisher.offer(Offer(version, put(full), put(compact), step))

    def send_step(self, workers: list[Worker]) -> None:
        """What training changed since goes ahead to these workers."""
        with torch.no_grad():
            self.policy.weight[:5] += 1
        step = self.encoder.encode_step()
        for worker in workers:
            ref = self.crew.runtime.beside(worker.actor, "stage_weights", self.crew.runtime.put(step))
            worker.staged = self.crew.get(ref)
            assert worker.staged == step.version.digest

    def deliver(self) -> dict[int, Exception]:
        """Errors by worker; the others have confirmed the newest version."""
        return self.settle(self.publisher.deliver(self.crew.workers))

    def settle(self, sent: list[tuple[Worker, Any]]) -> dict[int, Exception]:
        errors: dict[int, Exception] = {}
        for worker, ref in sent:
            try:
                loaded = self.crew.get(ref)
            except (ActorLostError, WeightTransferError) as error:
                errors[worker.index] = error
            else:
                assert loaded == self.publisher.version
                worker.digest = loaded.digest
        return errors

    def send_full(self, worker: Worker) -> None:
        assert self.settle([(worker, self.publisher.send_full(worker))]) == {}


@pytest.fixture(scope="module")
def crew():
    start_here(num_cpus=4)
    yield Crew(RayRuntime())
    ray.shutdown()


@pytest.fixture
def make_learner(crew):
    learners = []

    def make(**weights) -> Learner:
        learners.append(Learner(crew, **weights))
        return learners[-1]

    crew.looks()  # forget the kinds of the test before
    for worker in crew.workers:
        worker.digest = ""
    yield make
    for learner in learners:
        learner.publisher.close()


def test_the_object_store_sends_a_delta_to_those_that_hold_its_base_and_the_full_payload_to_others(crew, make_learner):
    learner = make_learner(payload="delta")
    learner.offer(0)
    assert learner.deliver() == {}
    crew.workers[1].digest = ""  # as after a replacement
    learner.offer(1)
    assert learner.deliver() == {}
    kinds, digests = zip(*crew.looks(), strict=True)
    assert kinds == (["full", "delta"], ["full", "full"], ["full", "delta"])
    assert set(digests) == {learner.publisher.version.digest}


def test_a_delta_that_does_not_fit_is_refused_and_the_full_payload_mends_it(crew, make_learner):
    learner = make_learner(payload="delta")
    learner.offer(0)
    base = learner.publisher.version.digest
    learner.offer(1)
    crew.workers[0].digest = base  # what the pool believes, and is not so
    errors = learner.deliver()
    assert list(errors) == [0] and isinstance(errors[0], WeightMismatchError)
    learner.send_full(crew.workers[0])
    assert crew.looks() == [(kinds, learner.publisher.version.digest) for kinds in (["delta", "full"], *[["full"]] * 2)]


def test_a_version_that_a_restored_learner_offers_again_goes_out_in_full(crew, make_learner):
    learner = make_learner(payload="delta")
    for _ in range(2):
        learner.offer(4)
        assert learner.deliver() == {}
        learner.restore()  # it knows no version before: its compact payload is None
    assert [kinds for kinds, _ in crew.looks()] == [["full", "full"]] * 3


def test_steps_are_put_aside_while_a_worker_acts_and_the_last_one_is_enough_for_those_that_have_them(
    crew, make_learner, tmp_path
):
    learner, (busy, idle, newcomer) = make_learner(payload="delta"), crew.workers
    learner.offer(0)
    assert learner.deliver() == {}
    before = learner.publisher.version
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    at_work = crew.runtime.call(busy.actor, "work", str(begun), str(go_on))
    while not begun.exists():
        time.sleep(0.01)
    learner.send_step([busy, idle])
    learner.send_step([busy])
    go_on.touch()
    assert crew.get(at_work) == before, "it acts with the version it had"
    newcomer.digest = ""
    learner.offer(1)
    payloads = [learner.publisher._payload_for([worker]) for worker in crew.workers]
    sizes = [crew.runtime.get(payload).nbytes for payload in payloads]
    assert sizes[0] < sizes[1] < sizes[2], "the last step, the update's delta, everything"
    assert learner.deliver() == {}
    kinds, digests = zip(*crew.looks(), strict=True)
    assert kinds == (["full", "delta"], ["full", "delta"], ["full", "full"])
    assert set(digests) == {learner.publisher.version.digest}


def test_a_broadcast_gives_what_the_object_store_gives(crew, make_learner):
    learner, other = make_learner(transport="gloo", payload="delta"), make_learner(payload="delta")
    other.policy.load_state_dict(learner.policy.state_dict())
    for update in range(3):
        learner.offer(update)
        assert learner.deliver() == {}
    broadcast = crew.looks()
    assert broadcast == [([], learner.publisher.version.digest)] * 3, "something came through the object store"
    assert learner.publisher._group.generation == 1
    for update in range(3):
        other.offer(update)
    assert other.deliver() == {}
    assert {digest for _, digest in crew.looks()} == {digest for _, digest in broadcast}


@pytest.mark.slow
def test_a_death_in_the_middle_of_a_broadcast_costs_the_others_one_attempt_and_the_learner_nothing(crew, make_learner):
    learner, runtime = make_learner(transport="gloo"), crew.runtime
    learner.offer(0)
    assert learner.deliver() == {}

    victim = crew.workers[1]
    pid = crew.get(runtime.locate(victim.actor)).pid
    os.kill(pid, signal.SIGSTOP)  # it takes a part, then no more: the broadcast is under way when it dies
    learner.offer(1)
    sent = learner.publisher.deliver(crew.workers)
    assert not runtime.wait([learner.publisher._sent], 0.5)
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    errors = learner.settle(sent)
    assert isinstance(errors.pop(victim.index), ActorLostError)
    assert all(isinstance(error, BroadcastError) for error in errors.values())
    assert "cut off" in crew.get(learner.publisher._sent)
    assert time.monotonic() - started < TIMEOUT_S / 2, "somebody waited for the timeout"
    crew.start(victim)
    victim.epoch += 1
    for index in (victim.index, *errors):
        learner.send_full(crew.workers[index])

    learner.offer(2)
    assert learner.deliver() == {} and learner.publisher._group.generation == 2
    runtime.kill(learner.publisher._publisher)
    learner.offer(3)
    errors = learner.deliver()
    assert [type(error) for error in errors.values()] == [BroadcastError] * 3
    for worker in crew.workers:
        learner.send_full(worker)

    learner.offer(4)
    assert learner.deliver() == {} and learner.publisher._group.generation == 3
    assert {digest for _, digest in crew.looks()} == {learner.publisher.version.digest}


def test_a_group_needs_processes():
    config = Config.model_validate({"weights": {"transport": "gloo"}})
    with pytest.raises(UserError, match=r"object_store"):
        make_publisher(config, SerialRuntime())
    assert not isinstance(make_publisher(Config(), SerialRuntime()), GroupPublisher)
