"""A learner that was started, for the first time or again: where it stands, and what the ledger knows of what is behind."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cluster.events.event_log import emit
from cluster.loop.ledger import FILE_NAME, Key, Record, State
from cluster.loop.rollouts import Handle
from cluster.runtimes.runtime import Ref
from cluster.workers.actor_pool import Worker
from wmpo_ray.algorithms.group_queue import GroupQueue
from wmpo_ray.core.types import (
    Group,
    GroupRequest,
    LearnerState,
    RolloutRequest,
    UpdateResult,
    Verdict,
    WeightVersion,
)
from wmpo_ray.core.untrusted import inside
from wmpo_ray.data.spool import SpoolError, check_spooled

if TYPE_CHECKING:
    from cluster.loop.train import TrainingLoop


EVALUATIONS = ("evaluate", "compare_labels")  # what is asked about earlier versions stays asked


class Updated(NamedTuple):
    result: UpdateResult
    full: Ref
    compact: Ref | None


class LearnerRestored(NamedTuple):
    worker: Worker
    state: LearnerState


def go_on(loop: TrainingLoop, event: LearnerRestored) -> None:
    """Go on where the learner stands: in the same update, behind it, or where an older checkpoint leaves it."""
    loop.crew.serves(event.worker)
    event.worker.loading = ""
    state = event.state
    for problem in state.problems:
        emit("checkpoint.damaged", problem, logging.WARNING)
    before = loop.version
    loop.crew.cancel(lambda task: task.role == "learner")  # what one that left handed back is asked anew below
    loop.learner_holds(state.version)
    if before is None:
        loop.resumed_from = state.version.num_updates
    if before is None or state.version.num_updates < before.num_updates:
        restart(loop, event.worker, state)
    elif state.version.num_updates > before.num_updates:
        # The step is in the checkpoint, only its answer was lost.
        result = UpdateResult(state.version, {k: v for k, v in state.history[-1].items() if k != "update"})
        loop.advance(Updated(result, ask_for_weights(loop, event.worker, state.version.num_updates), None))
    else:
        version = state.version.num_updates
        loop.keep_weights(state.version, ask_for_weights(loop, event.worker, version), None)
        if loop.training is not None:
            loop.train(loop.training)


def ask_for_weights(loop: TrainingLoop, worker: Worker, version: int) -> Ref:
    """The full payload of a version, from a learner."""
    about, full = loop.team.runtime.call(worker.actor, "weights", version, num_returns=2)

    def sent(_about: WeightVersion) -> None:
        if worker.loading == str(id(about)):  # not if it was asked once more
            worker.loading = ""

    if worker.task is None:
        worker.loading, worker.moved_at = str(id(about)), loop.team.runtime.clock()
    loop.crew.watch(about, worker, sent)
    return full


def restart(loop: TrainingLoop, worker: Worker, state: LearnerState) -> None:
    """Go on from the learner's checkpoint: what later updates held is taken back, and entered again where it is kept."""
    version = state.version.num_updates
    for key in state.trained:  # the driver went before it could enter them
        if loop.ledger.state(key) is State.ADMITTED:
            loop.ledger.append(State.TRAINED, key, version=version)
    taken = loop.ledger.restored(version)
    loop.crew.cancel(lambda task: task.method not in EVALUATIONS)
    loop.rollouts.queue, loop.training, loop.next_update = GroupQueue(loop.config), None, version
    loop.offered = -1
    loop.weights = {}
    for needed in range(loop.weights_for(version), version + 1):
        full = ask_for_weights(loop, worker, needed)
        loop.weights[needed] = (WeightVersion(needed, state.digests[needed]), full, None)
    reinstate(loop, taken)
    if version not in loop.log.restore(state.history):
        loop.reality.evaluate(version, loop.weights[version][1])


def reinstate(loop: TrainingLoop, taken: dict[Key, Record]) -> None:
    """Issue again what was issued, enter what was scored and is still on the disk, imagine the rest.

    `taken` are the groups that the ledger took back. Those imagined under weights that the learner has not come to again
    are forgotten: they will be issued when it has.
    """
    for update in sorted({update for update, _ in taken}):
        if loop.weights_for(update) not in loop.weights:
            continue
        last = max(attempt for other, attempt in taken if other == update)
        while loop.queue.num_issued(update) <= last:
            request = loop.next_request(update)
            missing = [g for g in request.groups if not _enter(loop, request, g, taken.get(g.key))]
            if missing:
                loop.rollouts.imagine(request)


def _enter(loop: TrainingLoop, request: RolloutRequest, group: GroupRequest, record: Record | None) -> bool:
    """Whether nothing is left to imagine for a group."""
    if record is None or record.facts["weights"] != request.weights:
        return False
    facts, rollouts = record.facts, loop.rollouts
    verdict = facts.get("verdict")
    if verdict == Verdict.QUARANTINED.value:
        loop.queue.quarantine(group)
        loop.ledger.append(State.REJECTED, group.key, verdict=verdict)
        return True
    if "success" not in facts:
        return verdict == Verdict.SURPLUS.value  # the same groups will be surplus again
    path = inside(rollouts.spool / f"update-{group.update:06d}", facts["file"], FILE_NAME)
    if verdict is None:  # it is going to be trained on
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
    )
    assert loop.version is not None
    rollouts.enter(scored, loop.version.num_updates)
    return True
