"""The driver's or the learner's restart: back to the checkpoint, with what the ledger knows of the updates behind it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from cluster.actor_pool import Worker
from cluster.events import emit
from cluster.ledger import Key, Record, State
from cluster.rollouts import Handle
from wmpo_ray.data.rollout_spool import SpoolError, check_spooled
from wmpo_ray.group_queue import GroupQueue
from wmpo_ray.types import Group, GroupRequest, LearnerState, RolloutRequest, Verdict, WeightVersion

if TYPE_CHECKING:
    from cluster.train import TrainingLoop


def restart(loop: TrainingLoop, worker: Worker, state: LearnerState) -> None:
    """Go on from the learner's checkpoint: what later updates held is taken back, and entered again where it is kept."""
    version = state.version.num_updates
    for key in state.trained:  # the driver went before it could enter them
        if loop.ledger.state(key) is State.ADMITTED:
            loop.ledger.append(State.TRAINED, key, version=version)
    taken = loop.ledger.restored(version)
    loop.crew.cancel(lambda task: task.role in ("imagination", "reward", "learner"))
    loop.rollouts.queue, loop.training, loop.next_update = GroupQueue(loop.config), None, version
    loop.offered = -1
    loop.weights = {}
    for needed in range(loop.weights_for(version), version + 1):
        full = loop.ask_for_weights(worker, needed)
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
    path = rollouts.spool / f"update-{group.update:06d}" / facts["file"]
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
