"""Rolls the loop back to the learner's checkpoint and re-enters the groups that the ledger still has."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from cluster.events.event_log import emit
from cluster.events.run_log import RunLog
from cluster.loop.budget import Budget
from cluster.loop.ledger import FILE_NAME, Key, Ledger, Record, State
from cluster.loop.reality import EVALUATE, Reality
from cluster.loop.rollouts import Handle, Rollouts
from cluster.loop.team import Team
from cluster.runtimes.runtime import Ref
from cluster.workers.actor_pool import Worker
from cluster.workers.crew import Crew
from wmpo_ray.algorithms.group_queue import GroupQueue, ReadyBatch
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import LearnerState
from wmpo_ray.core.types import Group, GroupRequest, RolloutRequest, Verdict, WeightVersion
from wmpo_ray.core.untrusted import inside
from wmpo_ray.data.spool import SpoolError, check_spooled
from wmpo_ray.runs.best_policy import BestPolicy

EVALUATIONS = (*EVALUATE, "compare_labels")  # evaluations of earlier versions remain valid


class Restartable(Protocol):
    """State of an online loop that a rollback reads or resets."""

    config: Config
    team: Team
    crew: Crew
    ledger: Ledger
    log: RunLog
    rollouts: Rollouts
    reality: Reality
    budget: Budget
    best: BestPolicy
    version: WeightVersion | None
    training: ReadyBatch | None
    next_update: int
    offered: int
    weights: dict[int, tuple[WeightVersion, Ref, Ref | None]]

    def weights_for(self, update: int) -> int: ...

    def next_request(self, update: int) -> RolloutRequest: ...


def ask_for_weights(loop: Restartable, worker: Worker, version: int) -> Ref:
    """Request the full payload of a version from the learner."""
    about, full = loop.team.runtime.call(worker.actor, "weights", version, num_returns=2)

    def sent(_about: WeightVersion) -> None:
        if worker.loading == str(id(about)):  # not if it was requested again
            worker.loading = ""

    if worker.task is None:
        worker.loading, worker.moved_at = str(id(about)), loop.team.runtime.clock()
    loop.crew.watch(about, worker, sent)
    return full


def restart(loop: Restartable, worker: Worker, state: LearnerState) -> None:
    """Continue from the learner's checkpoint: withdraw the groups of later updates, re-enter those still on disk."""
    version = state.version.num_updates
    for key in state.trained:  # the driver ended before it could record them
        if loop.ledger.state(key) is State.ADMITTED:
            loop.ledger.append(State.TRAINED, key, version=version)
    taken = loop.ledger.restored(version)
    loop.crew.cancel(lambda task: task.method not in EVALUATIONS)
    loop.rollouts.queue, loop.training, loop.next_update = GroupQueue(loop.config), None, version
    loop.budget.restore(state.history)
    loop.offered = -1
    loop.weights = {}
    for needed in range(loop.weights_for(version), version + 1):
        full = ask_for_weights(loop, worker, needed)
        loop.weights[needed] = (WeightVersion(needed, state.digests[needed]), full, None)
    reinstate(loop, taken)
    if version not in loop.log.restore(state.history):
        loop.reality.evaluate(version, loop.weights[version][1])
    measure_candidates(loop, version)


def measure_candidates(loop: Restartable, version: int) -> None:
    """Evaluate the candidates again whose evaluation was lost. Those of later updates will be saved again."""
    for update in loop.best.unmeasured():
        if loop.best.is_real and update < version:
            loop.reality.evaluate_saved(update, loop.best.candidate(update))
        elif not loop.best.is_real and update < loop.weights_for(version):  # measured, and not deleted any more
            loop.best.discard(update)


def reinstate(loop: Restartable, taken: dict[Key, Record]) -> None:
    """Issue the same requests again, re-enter groups that were scored and are still on disk, imagine the rest.

    `taken`: the groups that the ledger withdrew. Those imagined under weights that the learner has not reached again
    are dropped: they will be issued once it has.
    """
    for update in sorted({update for update, _ in taken}):
        if loop.weights_for(update) not in loop.weights:
            continue
        last = max(attempt for other, attempt in taken if other == update)
        while loop.rollouts.queue.num_issued(update) <= last:
            request = loop.next_request(update)
            missing = [g for g in request.groups if not _enter(loop, request, g, taken.get(g.key))]
            if missing:
                loop.rollouts.imagine(request)


def _enter(loop: Restartable, request: RolloutRequest, group: GroupRequest, record: Record | None) -> bool:
    """Re-enter a group; returns False if it must be imagined again."""
    if record is None or record.facts["weights"] != request.weights:
        return False
    facts, rollouts = record.facts, loop.rollouts
    verdict = facts.get("verdict")
    if verdict == Verdict.QUARANTINED.value:
        loop.rollouts.queue.quarantine(group)
        loop.ledger.append(State.REJECTED, group.key, verdict=verdict)
        return True
    if "success" not in facts:
        return verdict == Verdict.SURPLUS.value  # it will be surplus again
    path = inside(rollouts.spool / f"update-{group.update:06d}", facts["file"], FILE_NAME)
    if verdict is None:  # admitted: it will be trained on
        try:
            check_spooled(path, facts["sha256"])
        except SpoolError as error:
            emit("rollout.lost", f"{error}; its groups are imagined again", logging.WARNING, group=list(group.key))
            return False
    rows = (facts["rows"][0], facts["rows"][1])
    scored = Group(
        group,
        request.version,
        np.array(facts["success"], bool),
        np.array(facts["finish"], np.int64),
        facts["refuted"],
        Handle(None, str(path), facts["sha256"]),
        rows,
        np.array(facts["known"], bool) if "known" in facts else None,
    )
    assert loop.version is not None
    rollouts.enter(scored, loop.version.num_updates)
    return True
