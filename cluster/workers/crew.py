"""Schedules tasks on the pools of a run; handles starts, losses and heartbeats.

A task goes to a free worker of its role and, if that worker is lost, to another one: every request is a pure function,
so any worker gives the same answer. Late answers of replaced actors are dropped and counted.
"""

from __future__ import annotations

import logging
import time
from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.events.event_log import emit
from cluster.runtimes.runtime import HungError, InputLostError, Ref, Runtime, Work
from cluster.workers.actor_pool import ActorPool, Phase, Worker
from cluster.workers.hung import problem_of
from cluster.workers.pending import Failed, Late, Pending
from cluster.workers.tasks import Built, Done, HeardBeat, Joined, Located, Task
from cluster.workers.telemetry import Telemetry
from wmpo_ray.config.cluster import FaultsConfig


@dataclass
class Crew:
    runtime: Runtime
    faults: FaultsConfig
    telemetry: Telemetry = field(default_factory=Telemetry)
    pools: dict[str, ActorPool] = field(default_factory=dict)
    num_late: int = 0  # answers of replaced actors

    def __post_init__(self) -> None:
        self.pending = Pending(self.runtime)
        self._tasks: dict[str, list[Task]] = {}
        self._checked_at = -1e9  # when the heartbeats were last checked

    # -- work ----------------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        insort(self._tasks.setdefault(task.role, []), task, key=lambda other: other.order)

    def cancel(self, unwanted: Callable[[Task], bool]) -> None:
        """Drop tasks that no worker was called for."""
        for role, tasks in self._tasks.items():
            self._tasks[role] = [task for task in tasks if not unwanted(task)]
        for pool in self.pools.values():
            for worker in pool.workers:
                if worker.ahead is not None and unwanted(worker.ahead):
                    self._take_back(worker)

    def _follow(self, worker: Worker) -> None:
        """Begin what was lined up, unless the worker leaves or loads other weights."""
        task, worker.ahead = worker.ahead, None
        if task is None:
            return
        if worker.is_leaving or worker.loading or worker.digest != task.weights:
            self.submit(task)
        else:
            self._begin(task, worker)

    def _take_back(self, worker: Worker) -> Task | None:
        """The task that was lined up behind the present one of a worker."""
        task, worker.ahead = worker.ahead, None
        if task is not None:
            self.runtime.tell(worker.actor, *task.lined_up[1])
        return task

    def is_busy(self, role: str) -> bool:
        """Whether tasks of a role are waiting or under way."""
        return bool(self._tasks.get(role)) or any(worker.task for worker in self.pools[role].workers)

    def next_waiting(self, role: str) -> Task | None:
        """The first task of a role that no worker has begun."""
        tasks = self._tasks.get(role)
        return tasks[0] if tasks else None

    def turn(self) -> None:
        """Start workers, assign tasks, check heartbeats. Called once before every wait."""
        now = self.runtime.clock()
        for pool in self.pools.values():
            for worker in [w for w in pool.workers if w.is_leaving]:
                if (task := self._take_back(worker)) is not None:
                    self.submit(task)
                if worker.task is None:
                    pool.remove(worker)
            pool.fill()
            for worker in pool.workers:
                if worker.phase is Phase.DOWN and now >= worker.not_before:
                    self._start(pool, worker)
        if now - self._checked_at >= self.faults.heartbeat_every_s:
            # After this process itself was suspended, answers are still unread: restart the timeouts.
            self._check_heartbeats(now, ask_again=now - self._checked_at > self.faults.heartbeat_timeout_s)
            self._checked_at = now
        for role, tasks in self._tasks.items():
            self._assign(self.pools[role], tasks)

    def _assign(self, pool: ActorPool, tasks: list[Task]) -> None:
        unserved: set[str | None] = set()  # weights that no free worker has
        for task in list(tasks):
            if task.weights in unserved:
                continue
            if worker := pool.free(task.weights):
                tasks.remove(task)
                self._begin(task, worker)
            elif worker := pool.with_room(task):
                tasks.remove(task)
                worker.ahead = task
                self.runtime.tell(worker.actor, *(task.lined_up or ((), ()))[0])
            else:
                unserved.add(task.weights)

    def _begin(self, task: Task, worker: Worker) -> None:
        worker.task, worker.began_at = task, time.time()
        worker.moved_at = self.runtime.clock()
        refs = self.runtime.call(worker.actor, task.method, *task.args, num_returns=task.num_returns)
        first = refs[0] if task.num_returns > 1 else refs
        self.watch(
            first,
            worker,
            lambda value: Done(worker, task, value, refs),
            on_work=lambda work: task.worked(worker, work),
        )

    def watch(
        self,
        ref: Ref,
        worker: Worker,
        make_event: Callable[[Any], Any],
        on_failure: Callable[[Exception], None] | None = None,
        on_work: Callable[[Work], None] = lambda work: None,
    ) -> None:
        """Watch a call to a worker; by default, a failure means that the worker is lost."""
        self.pending.add(ref, worker, make_event, on_failure or (lambda error: self.fail(worker, error)), on_work)

    # -- events --------------------------------------------------------------------------------------------------

    def events(self, ended: list[Ref]) -> Iterator[Any]:
        """Handle the crew's own events; yield the others to the caller, in order."""
        for event in self.pending.events(ended):
            if (unhandled := self._handle(event)) is not None:
                yield unhandled

    def _handle(self, event: Any) -> Any:
        match event:
            case Late():
                self.num_late += 1
                self.telemetry.late()
            case Failed():
                event.on_failure(event.error)
            case Done():
                event.worker.num_failures = 0
                event.worker.task = None
                self._follow(event.worker)
                return event.task.done(event.value, event.refs)
            case Located():
                self._build(event)
            case Built():
                return self._join(event)
            case HeardBeat():
                self._note_beat(event)
            case _:
                return event
        return None

    # -- starts --------------------------------------------------------------------------------------------------

    def _start(self, pool: ActorPool, worker: Worker) -> None:
        if worker.epoch:
            self.telemetry.restarted(worker)
        pool.start(worker)
        self.watch(self.runtime.locate(worker.actor), worker, lambda process: Located(worker, process))

    def _build(self, event: Located) -> None:
        worker = event.worker
        worker.process, worker.phase = event.process, Phase.BUILDING
        worker.moved_at = self.runtime.clock()
        self.watch(self.runtime.build(worker.actor), worker, lambda seconds: Built(worker, seconds))

    def _join(self, event: Built) -> Joined:
        worker = event.worker
        worker.phase, worker.build_s = Phase.READY, event.seconds
        worker.moved_at = self.runtime.clock()
        facts: dict[str, Any] = {"worker": worker.name, "epoch": worker.epoch, "build_s": round(worker.build_s, 3)}
        if worker.process is not None:
            facts |= {"pid": worker.process.pid, "node": worker.process.node}
        emit("worker.ready", f"{worker.name} has loaded its models", logging.DEBUG, **facts)
        return Joined(worker)

    def serves(self, worker: Worker) -> None:
        """A worker is in service; log the recovery if it replaces a lost one."""
        if worker.lost_at is None:
            return
        seconds = self.runtime.clock() - worker.lost_at
        worker.lost_at = None
        self.telemetry.recovered(worker, seconds)
        facts: dict[str, Any] = {
            "worker": worker.name,
            "epoch": worker.epoch,
            "seconds": seconds,
            "build_s": worker.build_s,
        }
        emit("worker.replaced", f"{worker.name} is back after {seconds:.1f} s", **facts)

    # -- losses --------------------------------------------------------------------------------------------------

    def fail(self, worker: Worker, error: Exception, blame: bool = True) -> None:
        """A worker is lost: start a new actor for it and give its task to another worker."""
        task, worker.task = worker.task, None
        if isinstance(error, InputLostError) and task is not None:
            task.input_lost(error)  # the worker itself is fine
            return
        self._log_loss(worker, task, error)
        if (ahead := self._take_back(worker)) is not None:
            ahead.is_suspect = True
            if ahead.is_wanted():
                self.submit(ahead)
        self.pools[worker.role].lose(worker, error)
        if task is None:
            return
        task.num_crashes += blame
        if not task.is_wanted():
            return
        if task.num_crashes >= task.max_crashes:
            task.given_up(error)
        else:
            self.submit(task)

    def _log_loss(self, worker: Worker, task: Task | None, error: Exception) -> None:
        self.telemetry.lost(worker)
        reason = _first_lines(error)
        doing = {"call": task.method, "order": list(task.order)} if task is not None else {}
        facts = {"error": reason, "worker": worker.name, "epoch": worker.epoch, **doing}
        emit("worker.lost", f"{worker.name} was lost: {reason}", logging.WARNING, **facts)

    # -- heartbeats ----------------------------------------------------------------------------------------------

    def _check_heartbeats(self, now: float, ask_again: bool) -> None:
        for pool in self.pools.values():
            for worker in list(pool.workers):
                if worker.phase is Phase.DOWN:
                    continue
                if ask_again:
                    worker.asked_at, worker.moved_at = worker.asked_at and now, now
                if (problem := problem_of(worker, self.faults, self.runtime)) is not None:
                    self.fail(worker, HungError(problem))
                elif worker.asked_at is None and worker.phase is not Phase.PLACING:
                    worker.asked_at = now
                    self._ask(worker)

    def _ask(self, worker: Worker) -> None:
        self.watch(self.runtime.beat(worker.actor), worker, lambda beat: HeardBeat(worker, beat))

    def _note_beat(self, event: HeardBeat) -> None:
        worker, now = event.worker, self.runtime.clock()
        worker.asked_at = None
        self.telemetry.beat(worker, event.beat)
        if event.beat.num_beats != worker.beats:
            worker.beats, worker.moved_at = event.beat.num_beats, now

    # -- draining nodes ------------------------------------------------------------------------------------------

    def leave_nodes(self, draining: dict[str, float], margin_s: float) -> None:
        """Replace workers on draining nodes at once; they finish their task if there is time.

        draining: node -> seconds until it is gone; `margin_s` before that, an unfinished task is reassigned.
        """
        for pool in self.pools.values():
            for worker in list(pool.workers):
                if worker.process is None or worker.process.node not in draining:
                    continue
                if not worker.is_leaving:
                    text = f"{worker.name} leaves: its node is being taken away"
                    emit("worker.leaves", text, logging.WARNING, worker=worker.name, node=worker.process.node)
                    worker.is_leaving = True
                if worker.task is not None and draining[worker.process.node] < margin_s:
                    self.fail(worker, RuntimeError("its node is being taken away"), blame=False)

    def stop(self) -> None:
        for pool in self.pools.values():
            pool.stop()


def _first_lines(error: Exception, count: int = 2) -> str:
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return " ".join(lines[:count])[:400]
