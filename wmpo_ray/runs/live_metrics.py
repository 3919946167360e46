"""The live metrics of a run: every metric with its unit, its labels and its help text, and the meters that take them.

Metrics that are logged once per update are in `metrics.jsonl`; these are for live dashboards. Only the driver
updates a meter, since it sees every event; names are `wmpo_*`, as listed in `METRICS`.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server


class Kind(enum.Enum):
    COUNTER = "counter"  # only grows; its name ends in _total
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
UPDATES = (0.5, 1.5, 2.5, 4.5, 8.5)


class Metric(NamedTuple):
    """`labels` are those beside `run`, which every metric has."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, help, labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, help, labels)


def _histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, help, labels, buckets)


METRICS = {
    metric.name: metric
    for metric in (
        # What is imagined
        _counter("wmpo_imagined_frames_total", "Frames imagined, all trajectories together", "worker"),
        _counter("wmpo_imagined_chunks_total", "Action chunks imagined, all trajectories together", "worker"),
        _counter("wmpo_imagined_trajectories_total", "Trajectories imagined", "worker"),
        _histogram("wmpo_imagined_batch_trajectories", "Trajectories in one imagined batch", SIZES),
        _histogram("wmpo_scored_batch_videos", "Videos in one scored batch", SIZES),
        # Where the time goes
        _counter(
            "wmpo_phase_seconds_total",
            "Seconds of work: policy, denoise, decode and spool of imagination, score and verify of reward, step and "
            "checkpoint of the learner, policy, simulate, write, evaluate and compare of the environment, load of weights",
            "role",
            "worker",
            "phase",
        ),
        _histogram(
            "wmpo_call_seconds", "Seconds of a whole call, from its start in the worker", SECONDS, "role", "call"
        ),
        _counter(
            "wmpo_learner_waiting_seconds_total", "Seconds in which the learner was ready and had nothing to train"
        ),
        _counter("wmpo_driver_busy_seconds_total", "Seconds that the main loop itself took, without its waits"),
        # Queue
        _gauge("wmpo_queue_groups", "Groups of updates not yet trained: in_flight, admitted", "state"),
        _gauge("wmpo_queue_free_slots", "Groups that could be asked for now for the next update"),
        _counter(
            "wmpo_groups_total", "Groups decided: admit, uniform, outside, stale, surplus, quarantined", "verdict"
        ),
        _histogram(
            "wmpo_staleness_updates",
            "Updates between the weights that a trained group was imagined under and those it was used to improve",
            UPDATES,
        ),
        # Weights
        _gauge("wmpo_weight_version", "Updates behind the weights of: learner, offered, slowest_replica", "holder"),
        _histogram("wmpo_broadcast_seconds", "Seconds from offering weights until the last replica held them", SECONDS),
        _counter("wmpo_broadcast_bytes_total", "Bytes of weights sent, once for each replica"),
        # Learning
        _gauge("wmpo_update", "Updates done"),
        _gauge("wmpo_updates_planned", "Updates after which the run ends"),
        _histogram("wmpo_update_seconds", "Seconds from one update's end to the next one's", SECONDS),
        _histogram("wmpo_learner_step_seconds", "Seconds of one optimizer step", SECONDS),
        _gauge("wmpo_clip_fraction", "Share of the ratios that were clipped, last update"),
        _gauge("wmpo_ratio", "Probability ratio of new to behaviour policy, last update", "statistic"),
        _gauge("wmpo_advantage_spread", "Standard deviation of the advantages, last update"),
        _gauge("wmpo_gradient_norm", "Norm of the gradient before clipping, mean over the last update's steps"),
        _gauge("wmpo_imagined_success_rate", "Success of imagined trajectories as the reward model says, last update"),
        _gauge("wmpo_verified_success_rate", "The same after the second world model's verdict"),
        _gauge(
            "wmpo_rollout_success_rate",
            "Success of the training rollouts in the real environment, last update; recipes such as grpo-online",
        ),
        _gauge("wmpo_real_success_rate", "Success in the real environment, last evaluation"),
        _gauge("wmpo_real_success_low", "Lower end of its 95% interval"),
        _gauge("wmpo_real_success_high", "Upper end of its 95% interval"),
        _gauge("wmpo_label_agreement_rate", "Share of imagined outcomes that execution of the same actions confirmed"),
        # Of each of several tasks
        _gauge("wmpo_task_real_success_rate", "Success of a task in the real environment, last evaluation", "task"),
        _gauge("wmpo_task_real_success_low", "Lower end of its 95% interval", "task"),
        _gauge("wmpo_task_real_success_high", "Upper end of its 95% interval", "task"),
        _gauge("wmpo_task_training_success_rate", "Success of the rollouts of a task, last update", "task"),
        _gauge(
            "wmpo_task_label_agreement_rate", "Share of a task's imagined outcomes that execution confirmed", "task"
        ),
        _gauge("wmpo_task_keep_rate", "Share of a task's groups that were admitted, last update", "task"),
        _counter("wmpo_task_groups_total", "Groups of a task: admitted, refused", "task", "outcome"),
        # Actors and faults
        _gauge("wmpo_workers", "Workers by phase: down, placing, building, ready, working", "role", "phase"),
        _counter("wmpo_worker_losses_total", "Workers lost: killed, hung, or on a node that went", "role"),
        _counter("wmpo_worker_restarts_total", "Processes started in the place of lost ones", "role"),
        _histogram(
            "wmpo_recovery_seconds", "Seconds from the loss of a worker until its successor served", SECONDS, "role"
        ),
        _counter("wmpo_quarantined_groups_total", "Groups given up because they crashed every worker"),
        _counter("wmpo_late_answers_total", "Answers of replaced workers, dropped"),
        _gauge("wmpo_actor_memory_bytes", "Resident memory of a worker's process", "role", "worker"),
        _gauge("wmpo_gpu_memory_bytes", "GPU memory that a worker's process has reserved", "role", "worker"),
        _gauge("wmpo_gpu_utilisation_ratio", "Share of the time in which a worker's GPU was busy", "role", "worker"),
        _gauge("wmpo_stage", "1 for the stage that is running", "stage"),
    )
}


class Meter(Protocol):
    """Takes metrics under the names in `METRICS`; raises KeyError for another name."""

    def add(self, name: str, value: float, **labels: str) -> None: ...

    def set(self, name: str, value: float, **labels: str) -> None: ...

    def observe(self, name: str, value: float, **labels: str) -> None: ...

    def close(self) -> None:
        """No more metrics will be set."""


class NoMeter:
    """For a run without live metrics."""

    def add(self, name: str, value: float, **labels: str) -> None: ...

    def set(self, name: str, value: float, **labels: str) -> None: ...

    def observe(self, name: str, value: float, **labels: str) -> None: ...

    def close(self) -> None: ...


class PrometheusMeter:
    """For a process outside Ray; `serve` lets a Prometheus on this machine read it.

    Ray puts `ray_` before the names of its own; so does this, that one board shows both.
    """

    def __init__(self, run: str):
        self.registry = CollectorRegistry()
        self._run = run
        make = {Kind.COUNTER: Counter, Kind.GAUGE: Gauge, Kind.HISTOGRAM: Histogram}
        self._series = {}
        for metric in METRICS.values():
            extra = {"buckets": metric.buckets} if metric.kind is Kind.HISTOGRAM else {}
            self._series[metric.name] = make[metric.kind](
                f"ray_{metric.name}", metric.help, ("run", *metric.labels), registry=self.registry, **extra
            )

    def add(self, name: str, value: float, **labels: str) -> None:
        self._series[name].labels(run=self._run, **labels).inc(value)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._series[name].labels(run=self._run, **labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._series[name].labels(run=self._run, **labels).observe(value)

    def close(self) -> None:
        """The last metrics can be read until the process ends."""

    def serve(self, port: int, host: str = "127.0.0.1") -> None:
        """Answer on `host:port` until the process ends. Raises OSError where the port is taken."""
        start_http_server(port, addr=host, registry=self.registry)
