"""Takes a request through imagination, scoring and the queue; records each step in the ledger."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from cluster.events.event_log import emit
from cluster.loop.ledger import Key, Ledger, State
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
from wmpo_ray.core.types import Group, GroupRequest, RolloutRequest, Scores, Verdict
from wmpo_ray.data.spool import remove_spooled, spool_path


@dataclass(frozen=True)
class Handle:
    """Location of trajectories: in the object store while the actor that made them lives, and on disk."""

    ref: Ref | None
    path: str
    sha256: str


class Imagined(NamedTuple):
    request: RolloutRequest
    seconds: float
    videos: Ref
    trajectories: Handle
    scores: Scores | None  # None where a reward worker judges


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
        self.queue = GroupQueue(config)

    def imagine(self, request: RolloutRequest) -> None:
        path = str(spool_path(self.spool, request))
        first = request.kept_groups[0][1]
        self.team.crew.submit(
            Task(
                rollout_role(self.config),
                "rollout",
                (request, path),
                order=(*first.key, request.request_id),
                done=lambda value, refs: Imagined(
                    request, value.seconds, refs[1], Handle(refs[2], path, value.sha256), value.scores
                ),
                given_up=lambda error: self.give_up(request, error),
                is_wanted=lambda: self.is_open(request),
                num_returns=3,
                weights=request.weights,
                max_crashes=self.config.faults.max_crashes,
                worked=lambda worker, work: self.telemetry.imagined(worker, request, work, self.config),
            )
        )

    def score(self, event: Imagined) -> Scored | None:
        """Submit the videos for scoring; returns the scores directly if they came with the rollout."""
        self._add("time/imagine_s", event.seconds)
        self.team.rates.rolled_out(len(event.request.groups), event.seconds)
        if not self.is_open(event.request):
            self._count_late(event.request)
            return None
        for _, group in event.request.kept_groups:
            if self.ledger.state(group.key) is State.ISSUED:
                self.ledger.append(State.IMAGINED, group.key)
        if event.scores is not None:
            return Scored(event.request, event.scores, 0.0, None, event.trajectories)
        self.team.crew.submit(
            Task(
                "reward",
                "score",
                (event.videos,),
                order=(*event.request.kept_groups[0][1].key, event.request.request_id),
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
            self.team.rates.scored(len(event.request.groups), event.seconds)
        size = self.config.rollout.group_size
        for place, request in event.request.kept_groups:
            rows = slice(place * size, (place + 1) * size)
            refuted, known = event.scores.refuted, event.scores.known
            group = Group(
                request,
                event.request.version,
                event.scores.success[rows],
                event.scores.finish_step[rows],
                int(refuted[rows].sum()) if refuted is not None else 0,
                event.trajectories,
                (rows.start, rows.stop),
                known[rows] if known is not None else None,
            )
            self.enter(group, learner_version)

    def enter(self, group: Group, learner_version: int) -> None:
        """Judge a scored group once; a second answer is counted as late."""
        key, handle = group.request.key, group.trajectories
        assert isinstance(handle, Handle)
        verdict = self.queue.settle(group, learner_version)
        if verdict is None:
            self.ledger.late()
            return
        if self.ledger.state(key) is State.ISSUED:  # imagined by an actor whose first answer came too late
            self.ledger.append(State.IMAGINED, key)
        self.ledger.append(
            State.SCORED,
            key,
            success=group.success.astype(int).tolist(),
            finish=group.finish_step.tolist(),
            refuted=group.num_refuted,
            **({} if group.known is None else {"known": group.known.astype(int).tolist()}),
            rows=list(group.rows),
            file=Path(handle.path).name,
            sha256=handle.sha256,
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

    def forget(self, before_update: int) -> None:
        remove_spooled(self.spool, before_update)

    def is_open(self, request: RolloutRequest) -> bool:
        """True while at least one of its groups is still needed."""
        return any(self.queue.is_open(group.key) for _, group in request.kept_groups)

    # -- groups that crash workers --------------------------------------------------------------------------------

    def give_up(self, request: RolloutRequest, error: Exception) -> None:
        """Handle a request that keeps crashing workers: retry its groups one by one, quarantine the culprits."""
        if request.kept is None and len(request.groups) > 1:
            for place in range(len(request.groups)):
                self.imagine(request.alone(place))
            return
        ((_, group),) = request.kept_groups
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


def _is_only_for(task: Any, keys: set[Key]) -> bool:
    return task.method == "rollout" and all(group.key in keys for _, group in task.args[0].kept_groups)


def for_learner(batch: ReadyBatch, spooled: bool) -> tuple[list[GroupSlice], list[Any]]:
    """The slice of each group of a batch, and the trajectory objects: references, or files if `spooled`."""
    handles: dict[str, Handle] = {}
    slices = []
    for group in batch.groups:
        handle = group.trajectories
        assert isinstance(handle, Handle)
        handles.setdefault(handle.path, handle)
        place = list(handles).index(handle.path)
        slices.append(GroupSlice(place, group.rows, group.success, group.finish_step, group.known))
    return slices, [
        Spooled(handle.path, handle.sha256) if spooled or handle.ref is None else handle.ref
        for handle in handles.values()
    ]
