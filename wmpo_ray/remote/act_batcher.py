"""Questions of many robots in one batch, without keeping any of them waiting for long."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from wmpo_client.refusals import Refusal
from wmpo_ray.core.observations import Observation

RECENT_S = 1.0  # who asked within it is expected to ask again


class Replica(Protocol):
    """A copy of the policy; `act` returns what `actors.serving_actor.Acted` holds."""

    async def act(self, observation: Observation, seeds: list[int]) -> Any: ...


class Answer(NamedTuple):
    """One row of a batch."""

    actions: np.ndarray  # [K, D] float32
    version: Any  # WeightVersion
    queued_s: float
    policy_s: float
    batch_size: int


@dataclass
class Question:
    """What one robot sees; `until` is the time of the monotonic clock after which nobody waits for the answer."""

    robot: str
    images: dict[str, np.ndarray]  # camera -> [H, W, 3] uint8
    instruction: str
    state: np.ndarray | None  # [S] float32
    seed: int
    until: float
    asked: float = field(default_factory=time.monotonic)
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def kind(self) -> tuple[Any, ...]:
        """What rows of one batch have in common."""
        shapes = tuple((camera, image.shape) for camera, image in self.images.items())
        return (shapes, None if self.state is None else self.state.shape)


class ActBatcher:
    """One queue for all replicas. A free replica takes what is there, once everyone who is expected has asked or the first
    has waited for `max_wait_s`; so a single robot never waits, and many are decided on together.

    Raises Refusal from `ask` where the queue is full or the deadline is over.
    """

    def __init__(
        self, replicas: Sequence[Replica], max_batch: int = 64, max_wait_s: float = 0.005, max_waiting: int = 512
    ):
        self.replicas, self.max_batch, self.max_wait_s, self.max_waiting = replicas, max_batch, max_wait_s, max_waiting
        self._waiting: deque[Question] = deque()
        self._recent: dict[str, float] = {}  # robot -> when it asked last
        self._changed = asyncio.Event()
        self._resting = set[int]()  # numbers of the replicas that are given no batch
        self._turns = [asyncio.Lock() for _ in replicas]  # of each: a batch, or something else
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Needs a running event loop."""
        self._tasks = [asyncio.create_task(self._serve(number)) for number in range(len(self.replicas))]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for question in self._waiting:
            question.answer.cancel()

    async def ask(self, question: Question) -> Answer:
        if len(self._waiting) >= self.max_waiting:
            raise Refusal("RESOURCE_EXHAUSTED", "queue", f"{self.max_waiting} questions are waiting already")
        self._recent[question.robot] = question.asked
        self._waiting.append(question)
        self._changed.set()
        return await question.answer

    @asynccontextmanager
    async def resting(self, number: int) -> AsyncIterator[None]:
        """A block in which this replica, once it has answered its present batch, is given none: others take them."""
        self._resting.add(number)
        try:
            async with self._turns[number]:
                yield
        finally:
            self._resting.discard(number)
            self._changed.set()

    async def _serve(self, number: int) -> None:
        replica = self.replicas[number]
        while True:
            batch = await self._next_batch(number)
            taken = time.monotonic()
            try:
                async with self._turns[number]:
                    acted = await replica.act(_observation(batch), [question.seed for question in batch])
            except Exception as error:  # noqa: BLE001  the robots hear of it, and the next batch may be another
                for question in batch:
                    if not question.answer.done():
                        question.answer.set_exception(error)
                continue
            for row, question in enumerate(batch):
                if not question.answer.done():
                    queued = taken - question.asked
                    answer = Answer(acted.actions[row], acted.version, queued, acted.seconds, len(batch))
                    question.answer.set_result(answer)

    async def _next_batch(self, number: int) -> list[Question]:
        while True:
            self._drop_late()
            left = None
            if self._waiting and number not in self._resting and (left := self._wait_for_others()) <= 0:
                return self._take()
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                continue

    def _wait_for_others(self) -> float:
        """Seconds that the first question may still wait for those that are expected."""
        now = time.monotonic()
        self._recent = {robot: asked for robot, asked in self._recent.items() if now - asked < RECENT_S}
        if len(self._waiting) >= min(self.max_batch, len(self._recent)):
            return 0.0
        return self._waiting[0].asked + self.max_wait_s - now

    def _take(self) -> list[Question]:
        kind, batch, others = self._waiting[0].kind, list[Question](), deque[Question]()
        for question in self._waiting:
            fits = question.kind == kind and len(batch) < self.max_batch
            (batch if fits else others).append(question)
        self._waiting = others
        return batch

    def _drop_late(self) -> None:
        now, kept = time.monotonic(), deque[Question]()
        for question in self._waiting:
            if question.answer.done():
                continue  # nobody waits for it
            if question.until > now:
                kept.append(question)
            else:
                late = Refusal("DEADLINE_EXCEEDED", "late", "the deadline was over before a replica was free")
                question.answer.set_exception(late)
        self._waiting = kept


def _observation(batch: Sequence[Question]) -> Observation:
    images = {camera: np.stack([question.images[camera] for question in batch]) for camera in batch[0].images}
    states = [question.state for question in batch if question.state is not None]
    return Observation(images, tuple(question.instruction for question in batch), np.stack(states) if states else None)
