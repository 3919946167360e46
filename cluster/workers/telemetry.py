"""Turns the driver's events into live metrics, traces and the run's status.

`Telemetry()` without arguments collects them and publishes nothing.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from cluster.events.status import Status
from cluster.runtimes.runtime import Beat, Work
from cluster.workers.actor_pool import ActorPool, Phase, Worker
from cluster.workers.trace_log import TraceLog
from wmpo_ray.config.run import Config
from wmpo_ray.core.types import RolloutRequest, WeightVersion
from wmpo_ray.runs.live_metrics import Meter, NoMeter

STATUS_EVERY_S = 1.0
RATE_WINDOW_S = 60.0
SHOWN = {
    "imagined/success_rate": "imagined_success",
    "rollout/success_rate": "rollout_success",
    "real/success_rate": "real_success",
    "real/success_low": "real_low",
    "real/success_high": "real_high",
}


class Telemetry:
    def __init__(
        self,
        meter: Meter | None = None,
        trace: TraceLog | None = None,
        status: Status | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.meter, self.trace, self.status, self.clock = meter or NoMeter(), trace, status, clock
        self.verdicts: Counter[str] = Counter()
        self._reported_at = 0.0
        self._updated_at: float | None = None
        self._offered_at: float | None = None
        self._frames: deque[tuple[float, float, float]] = deque()  # (time, frames, groups) of the last minute
        self._memory: dict[str, Beat] = {}
        self._facts: dict[str, Any] = {}

    # -- work ----------------------------------------------------------------------------------------------------

    def worked(self, worker: Worker, call: str, work: Work, update: int, version: int, groups: Sequence = ()) -> None:
        """Record a call that a worker has answered; `update`: the update it belongs to."""
        meter = self.meter
        meter.observe("wmpo_call_seconds", work.seconds, role=worker.role, call=call)
        for phase, seconds in (work.recording.seconds() or {call: work.seconds}).items():
            meter.add("wmpo_phase_seconds_total", seconds, role=worker.role, worker=worker.name, phase=phase)
        if worker.role == "learner":
            for span in work.recording.spans:
                if span.name == "step":
                    meter.observe("wmpo_learner_step_seconds", span.seconds)
        if sent := work.recording.counts.get("bytes"):
            meter.add("wmpo_broadcast_bytes_total", sent)
        if self.trace is not None:
            self.trace.call(worker, call, update, groups, version, work)

    def imagined(self, worker: Worker, request: RolloutRequest, work: Work, config: Config) -> None:
        trajectories = request.num_trajectories
        chunks = work.recording.counts.get("chunks", 0.0)
        frames = chunks * config.rollout.chunk_length
        self.meter.add("wmpo_imagined_trajectories_total", trajectories, worker=worker.name)
        self.meter.add("wmpo_imagined_chunks_total", chunks, worker=worker.name)
        self.meter.add("wmpo_imagined_frames_total", frames, worker=worker.name)
        self.meter.observe("wmpo_imagined_batch_trajectories", trajectories)
        self._frames.append((self.clock(), frames, trajectories / config.rollout.group_size))
        self.worked(worker, "imagine", work, *_about(request))

    def scored(self, worker: Worker, request: RolloutRequest, work: Work) -> None:
        self.meter.observe("wmpo_scored_batch_videos", request.num_trajectories)
        self.worked(worker, "score", work, *_about(request))

    def decided(self, verdict: str) -> None:
        """Count the verdict on a group."""
        self.verdicts[verdict] += 1
        self.meter.add("wmpo_groups_total", 1, verdict=verdict)
        if verdict == "quarantined":
            self.meter.add("wmpo_quarantined_groups_total", 1)

    def late(self) -> None:
        self.meter.add("wmpo_late_answers_total", 1)

    # -- updates and weights -------------------------------------------------------------------------------------

    def trains(self, staleness: Sequence[int]) -> None:
        """Record the staleness of each group in a batch that goes to the learner."""
        for updates in staleness:
            self.meter.observe("wmpo_staleness_updates", updates)

    def updated(self) -> None:
        now = self.clock()
        if self._updated_at is not None:
            self.meter.observe("wmpo_update_seconds", now - self._updated_at)
        self._updated_at = now

    def metrics(self, values: dict[str, float]) -> None:
        """Metrics of an update, under their names in metrics.jsonl; shown in the status."""
        self._facts |= {shown: values[key] for key, shown in SHOWN.items() if key in values}

    def offered(self, version: WeightVersion) -> None:
        self._offered_at = self.clock()
        self.meter.set("wmpo_weight_version", version.num_updates, holder="offered")

    def arrived(self) -> None:
        """Every replica has the offered weights."""
        if self._offered_at is not None:
            self.meter.observe("wmpo_broadcast_seconds", self.clock() - self._offered_at)
            self._offered_at = None

    # -- faults --------------------------------------------------------------------------------------------------

    def lost(self, worker: Worker) -> None:
        self._memory.pop(worker.name, None)
        self.meter.add("wmpo_worker_losses_total", 1, role=worker.role)
        for name in ("wmpo_actor_memory_bytes", "wmpo_gpu_memory_bytes", "wmpo_gpu_utilisation_ratio"):
            self.meter.set(name, 0, role=worker.role, worker=worker.name)

    def restarted(self, worker: Worker) -> None:
        self.meter.add("wmpo_worker_restarts_total", 1, role=worker.role)

    def recovered(self, worker: Worker, seconds: float) -> None:
        self.meter.observe("wmpo_recovery_seconds", seconds, role=worker.role)

    def beat(self, worker: Worker, beat: Beat) -> None:
        self._memory[worker.name] = beat
        labels = {"role": worker.role, "worker": worker.name}
        self.meter.set("wmpo_actor_memory_bytes", beat.memory_bytes, **labels)
        if beat.gpu_memory_bytes:
            self.meter.set("wmpo_gpu_memory_bytes", beat.gpu_memory_bytes, **labels)
            self.meter.set("wmpo_gpu_utilisation_ratio", beat.gpu_utilisation, **labels)

    # -- status --------------------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether it is time for the next `report_status`."""
        return self.clock() - self._reported_at >= STATUS_EVERY_S

    def report_status(
        self,
        pools: dict[str, ActorPool],
        replicas: ActorPool,
        queue: dict[str, int],
        version: int,
        offered: int,
        wants_work: bool,
    ) -> None:
        """Set the gauges, write the status, flush the trace to disk. Called once a second.

        replicas: workers that act with the newest weights; queue: groups `in_flight`, `admitted`, `needed` and `free`;
        version, offered: versions of the weights; wants_work: the learner is idle for lack of a batch.
        """
        now = self.clock()
        since, self._reported_at = now - (self._reported_at or now), now
        if wants_work:
            self.meter.add("wmpo_learner_waiting_seconds_total", since)
        for state in ("in_flight", "admitted"):
            self.meter.set("wmpo_queue_groups", queue[state], state=state)
        self.meter.set("wmpo_queue_free_slots", queue["free"])
        self.meter.set("wmpo_update", version)
        self.meter.set("wmpo_weight_version", version, holder="learner")
        versions = [worker.version for worker in replicas.ready]
        self.meter.set("wmpo_weight_version", min(versions, default=offered), holder="slowest_replica")
        workers = [worker for pool in pools.values() for worker in pool.workers]
        self._count_workers(pools)
        if self.trace is not None:
            self.trace.flush()
        if self.status is not None:
            facts = {**self._facts, "update": version, "version": version, "offered": offered}
            facts |= {"queue": {**queue, "verdicts": dict(self.verdicts)}, "rates": self._rates(now)}
            self.status.update(**facts, workers=[self._about_worker(worker) for worker in workers])

    def _count_workers(self, pools: dict[str, ActorPool]) -> None:
        for role, pool in pools.items():
            counts = Counter("working" if w.task is not None else w.phase.value for w in pool.workers)
            for phase in (*(phase.value for phase in Phase), "working"):
                self.meter.set("wmpo_workers", counts[phase], role=role, phase=phase)

    def _rates(self, now: float) -> dict[str, float]:
        while self._frames and self._frames[0][0] < now - RATE_WINDOW_S:
            self._frames.popleft()
        if not self._frames:
            return {"frames_per_s": 0.0, "groups_per_s": 0.0}
        seconds = max(now - self._frames[0][0], STATUS_EVERY_S)
        frames, groups = (sum(entry[i] for entry in self._frames) for i in (1, 2))
        return {"frames_per_s": frames / seconds, "groups_per_s": groups / seconds}

    def _about_worker(self, worker: Worker) -> dict[str, Any]:
        beat = self._memory.get(worker.name, Beat(0))
        doing = worker.task.method if worker.task is not None else "load_weights" if worker.loading else ""
        return {
            "name": worker.name,
            "role": worker.role,
            "phase": worker.phase.value,
            "doing": doing,
            "since": worker.began_at,
            "weights": worker.digest,
            "memory_bytes": beat.memory_bytes,
            "gpu_memory_bytes": beat.gpu_memory_bytes,
            "losses": worker.epoch,
        }


def _about(request: RolloutRequest) -> tuple[int, int, list[tuple[int, int]]]:
    groups = [group.key for group in request.kept_groups]
    return groups[0][0], request.version, groups
