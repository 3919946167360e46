"""Takes a request through imagination, scoring and the queue; records each step in the ledger."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from cluster.events.event_log import emit
from cluster.loop.ledger import Key, Ledger, State
from cluster.loop.members import Handle, Members, ScoredMembers, as_group, handles_of
from cluster.loop.team import Team
from cluster.runtimes.runtime import Ref
from cluster.workers.tasks import Task
from learners.policy_learner import Spooled
from wmpo_ray.algorithms.batching import GroupSlice
from wmpo_ray.algorithms.group_queue import GroupQueue, ReadyBatch
from wmpo_ray.config.roles import rollout_role
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Scores, Verdict
from wmpo_ray.data.spool import remove_spooled, spool_path


class Imagined(NamedTuple):
    request: RolloutRequest
    seconds: float
    videos: Ref
    trajectories: Handle
    scores: Scores | None  # None where a reward worker judges
    is_dropped: bool  # as surplus, while it was imagined
    num_chunks: int  # of all its trajectories, that were imagined


class Scored(NamedTuple):
    request: RolloutRequest
    scores: Scores
    seconds: float
    scores_ref: Ref | None  # None: they came with the rollout
    trajectories: Handle


class Rollouts:
    """`spool`: folder for trajectories; `quarantine`: folder for start states that crash their workers."""

    def __init__(self, config: Config, team: Team, ledger: Ledger, spool: Path, quarantine: Path):
        self.config, self.team, self.ledger, self.spool, self.folder = config, team, ledger, spool, quarantine
        self.telemetry = team.telemetry
        self.num_quarantined = 0
        self._metrics: dict[str, float] = {}
        self.begin_again()

    def begin_again(self) -> None:
        """Forget every group: the ledger has withdrawn them."""
        self.queue, self.members = GroupQueue(self.config), Members()

    def imagine(self, request: RolloutRequest) -> None:
        path = str(spool_path(self.spool, request))
        first, keys = request.kept_groups[0], [group.key for group in request.kept_groups]
        # With slots, an actor begins what follows where they come free.
        lined_up = (("expect", request), ("drop", request.request_id, keys)) if self.config.rollout.slots else None
        self.team.crew.submit(
            Task(
                rollout_role(self.config),
                "rollout",
                (request, path),
                order=(*first.key, request.request_id),
                done=lambda value, refs: Imagined(
                    request,
                    value.seconds,
                    refs[1],
                    Handle(refs[2], path, value.sha256),
                    value.scores,
                    value.is_dropped,
                    value.num_chunks,
                ),
                given_up=lambda error: self.give_up(request, error),
                is_wanted=lambda: self.is_open(request),
                num_returns=3,
                weights=request.weights,
                max_crashes=self.config.faults.max_crashes,
                worked=lambda worker, work: self.telemetry.imagined(worker, request, work, self.config),
                lined_up=lined_up,
            )
        )

    def score(self, event: Imagined) -> Scored | None:
        """Submit the videos for scoring; returns the scores directly if they came with the rollout."""
        self._add("time/imagine_s", event.seconds)
        self._add("work/imagined_chunks", event.num_chunks)
        if event.is_dropped:
            return None
        self.team.rates.rolled_out(self._num_groups(event.request), event.seconds)
        if not self.is_open(event.request):
            self._count_late(event.request)
            return None
        for group in event.request.kept_groups:
            if self.ledger.state(group.key) is State.ISSUED:
                self.ledger.append(State.IMAGINED, group.key)
        if event.scores is not None:
            return Scored(event.request, event.scores, 0.0, None, event.trajectories)
        self.team.crew.submit(
            Task(
                "reward",
                "score",
                (event.videos,),
                order=(*event.request.kept_groups[0].key, event.request.request_id),
                done=lambda value, ref: Scored(event.request, value[0], value[1], ref, event.trajectories),
                given_up=lambda error: self.give_up(event.request, error),
                input_lost=lambda error: self.imagine(event.request),
                max_crashes=self.config.faults.max_crashes,
                worked=lambda worker, work: self.telemetry.scored(worker, event.request, work),
            )
        )
        return None

    def settle(self, event: Scored, learner_version: int) -> None:
        if event.scores_ref is not None:
            self._add("time/score_s", event.seconds)
            self.team.rates.scored(self._num_groups(event.request), event.seconds)
        for piece in event.request.pieces:
            group = piece.group
            if not self.queue.is_open(group.key) or self.members.holds(piece):
                self.ledger.late()
                continue
            part = ScoredMembers.of(piece, event.scores, event.trajectories)
            if part.members != (0, group.group_size):
                self.ledger.part(group.key, **part.facts)
            if (whole := self.members.take(group, part)) is not None:
                self.enter(group, event.request.version, whole, learner_version)

    def enter(self, request: GroupRequest, version: int, whole: ScoredMembers, learner_version: int) -> None:
        """Judge a scored group once; a second answer is counted as late."""
        key, group = request.key, as_group(request, version, whole)
        verdict = self.queue.settle(group, learner_version)
        if verdict is None:
            self.ledger.late()
            return
        if self.ledger.state(key) is State.ISSUED:  # imagined by an actor whose first answer came too late
            self.ledger.append(State.IMAGINED, key)
        self.ledger.append(
            State.SCORED,
            key,
            **whole.facts,
        )
        self.telemetry.decided(verdict.value)
        if verdict is Verdict.ADMIT:
            self.ledger.append(State.ADMITTED, key)
        else:
            self.ledger.append(State.REJECTED, key, verdict=verdict.value)

    def drop_surplus(self, keys: Sequence[Key]) -> None:
        """Reject groups that the batch of their update did not need."""
        for key in keys:
            if self.ledger.state(key) is not State.REJECTED:
                self.ledger.append(State.REJECTED, key, verdict=Verdict.SURPLUS.value)
                self.telemetry.decided(Verdict.SURPLUS.value)
        dropped = set(keys)
        self.team.crew.cancel(lambda task: task.role != "learner" and _is_only_for(task, dropped))
        for worker in self.team.replicas.workers:
            if worker.task is not None and worker.task.method == "rollout":
                request: RolloutRequest = worker.task.args[0]
                if mine := [group.key for group in request.kept_groups if group.key in dropped]:
                    self.team.runtime.tell(worker.actor, "drop", request.request_id, mine)

    def forget(self, before_update: int) -> None:
        remove_spooled(self.spool, before_update)
        self.members.forget(before_update)

    def is_open(self, request: RolloutRequest) -> bool:
        """True while at least one of its members is still needed."""
        return any(self.queue.is_open(piece.group.key) and not self.members.holds(piece) for piece in request.pieces)

    # -- groups that crash workers --------------------------------------------------------------------------------

    def give_up(self, request: RolloutRequest, error: Exception) -> None:
        """Handle a request that keeps crashing workers: retry its groups one by one, quarantine the culprits."""
        if request.kept is None and len(request.groups) > 1:
            for place in range(len(request.groups)):
                if self.queue.is_open(request.groups[place].key):
                    self.imagine(request.alone(place))
            return
        (group,) = request.kept_groups
        self.quarantine(group, error)

    def quarantine(self, group: GroupRequest, error: Exception) -> None:
        if not self.queue.quarantine(group):
            return
        self.ledger.append(State.REJECTED, group.key, verdict=Verdict.QUARANTINED.value)
        self.telemetry.decided(Verdict.QUARANTINED.value)
        self.num_quarantined += 1
        path = self.folder / f"update-{group.update:06d}-attempt-{group.attempt:06d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "instruction": group.start.instruction,
            "environment_seed": group.start.seed,
            "start_index": group.start_index,
            "update": group.update,
            "attempt": group.attempt,
            "run_seed": group.run_seed,
            "error": str(error)[:4000],
        }
        with atomic_directory(path) as partial:
            save_file({"frames": np.ascontiguousarray(group.start.frames)}, partial / "start.safetensors")
            (partial / "about.json").write_text(json.dumps(facts, indent=1))
        text = f"start state {group.start_index} crashed every worker; saved in {path}"
        emit("group.quarantined", text, logging.WARNING, group=list(group.key), error=str(error)[:400])
        limit = self.config.faults.max_quarantined
        if self.num_quarantined > limit:
            raise UserError(
                f"{error}\n{self.num_quarantined} start states crashed every worker that imagined them; they are in "
                f"{self.folder}. Fix the cause named in the error, or raise faults.max_quarantined={limit}"
            )

    # -- metrics -------------------------------------------------------------------------------------------------

    def take_metrics(self) -> dict[str, float]:
        metrics, self._metrics = self._metrics, {}
        return metrics

    def _add(self, key: str, value: float) -> None:
        self._metrics[key] = self._metrics.get(key, 0.0) + value

    def _count_late(self, request: RolloutRequest) -> None:
        for _ in request.kept_groups:
            self.ledger.late()

    def _num_groups(self, request: RolloutRequest) -> float:
        return request.num_trajectories / self.config.rollout.group_size


def _is_only_for(task: Any, keys: set[Key]) -> bool:
    return task.method == "rollout" and all(group.key in keys for group in task.args[0].kept_groups)


def for_learner(batch: ReadyBatch, spooled: bool) -> tuple[list[GroupSlice], list[Any]]:
    """The slice of each group of a batch, and the trajectory objects: references, or files if `spooled`."""
    handles: dict[str, Handle] = {}
    slices = []
    for group in batch.groups:
        pieces = []
        for handle, rows in handles_of(group):
            handles.setdefault(handle.path, handle)
            pieces.append((list(handles).index(handle.path), rows))
        slices.append(GroupSlice(tuple(pieces), group.success, group.finish_step, group.known))
    return slices, [
        Spooled(handle.path, handle.sha256) if spooled or handle.ref is None else handle.ref
        for handle in handles.values()
    ]
