"""Rolls the loop back to the learner's checkpoint and re-enters the groups that the ledger still has."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cluster.events.event_log import emit
from cluster.events.run_log import RunLog
from cluster.loop.budget import Budget
from cluster.loop.ledger import Key, Ledger, Record, State
from cluster.loop.members import ScoredMembers
from cluster.loop.reality import EVALUATE, Reality
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import Team
from cluster.runtimes.runtime import Ref
from cluster.weights.delivery import Offer
from cluster.workers.actor_pool import Worker
from cluster.workers.crew import Crew
from wmpo_ray.algorithms.group_queue import ReadyBatch
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import LearnerState
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Verdict, WeightVersion
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
    weights: dict[int, Offer]

    def weights_for(self, update: int) -> int: ...

    def next_requests(self, update: int) -> list[RolloutRequest]: ...


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
    loop.rollouts.begin_again()
    loop.training, loop.next_update = None, version
    loop.budget.restore(state.history)
    loop.offered = -1
    loop.weights = {}
    for needed in range(loop.weights_for(version), version + 1):
        full = ask_for_weights(loop, worker, needed)
        loop.weights[needed] = Offer(WeightVersion(needed, state.digests[needed]), full)
    reinstate(loop, taken)
    if version not in loop.log.restore(state.history):
        loop.reality.evaluate(version, loop.weights[version].full)
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
            requests = loop.next_requests(update)
            groups = {group.key: group for request in requests for group in request.groups}
            version, weights = requests[0].version, requests[0].weights
            missing = {
                key for key, group in groups.items() if not _enter(loop, group, version, weights, taken.get(key))
            }
            for request in requests:
                if any(p.group.key in missing and not loop.rollouts.members.holds(p) for p in request.pieces):
                    loop.rollouts.imagine(request)


def _enter(loop: Restartable, group: GroupRequest, version: int, weights: str, record: Record | None) -> bool:
    """Re-enter a group, or the members of it that were scored; returns False if some must be imagined again."""
    if record is None or record.facts["weights"] != weights:
        return False
    facts, rollouts = record.facts, loop.rollouts
    verdict = facts.get("verdict")
    if verdict == Verdict.QUARANTINED.value:
        rollouts.queue.quarantine(group)
        loop.ledger.append(State.REJECTED, group.key, verdict=verdict)
        return True
    if "success" not in facts:
        if verdict == Verdict.SURPLUS.value:
            return True  # it will be surplus again
        _enter_parts(loop, group, facts.get("parts", []))
        return False
    whole = ScoredMembers.read(facts, _spool_of(loop, group))
    if verdict is None and not _is_there(group, whole):  # admitted: it will be trained on
        return False
    assert loop.version is not None
    rollouts.enter(group, version, whole, loop.version.num_updates)
    return True


def _enter_parts(loop: Restartable, group: GroupRequest, parts: Sequence[dict]) -> None:
    """Those that make up the whole group are in the ledger as such, so some members are missing."""
    for facts in parts:
        part = ScoredMembers.read(facts, _spool_of(loop, group))
        if _is_there(group, part):
            loop.ledger.part(group.key, **part.facts)
            loop.rollouts.members.take(group, part)


def _spool_of(loop: Restartable, group: GroupRequest) -> Path:
    return loop.rollouts.spool / f"update-{group.update:06d}"


def _is_there(group: GroupRequest, scored: ScoredMembers) -> bool:
    try:
        for handle in scored.handles:
            check_spooled(Path(handle.path), handle.sha256)
    except SpoolError as error:
        emit("rollout.lost", f"{error}; its groups are imagined again", logging.WARNING, group=list(group.key))
        return False
    return True
