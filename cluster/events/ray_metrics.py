"""The live metrics of a run as Ray's own metrics: every node's agent shows them to Prometheus, as `ray_wmpo_*`."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from wmpo_ray.config.roles import ROLES
from wmpo_ray.core.types import Verdict
from wmpo_ray.runs.live_metrics import METRICS, Kind

AGAIN_EVERY_S = 1.0
# Labels whose values are known before anything happens.
KNOWN = {
    "role": tuple(ROLES),
    "verdict": tuple(verdict.value for verdict in Verdict),
}


class RayMeter:
    """Implements `Meter`; needs a connection to Ray. the label `run` separates the metrics of different runs.

    Ray forgets a gauge that has not been set again within two of its report intervals: a thread sets all of them every
    second. Counters begin at zero, for Prometheus sees growth only between two values of a series.
    """

    THREAD = "metrics"

    def __init__(self, run: str):
        self._run = run
        self._series: dict[str, Any] = {}
        self._gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for metric in METRICS.values():
            if metric.kind is Kind.COUNTER and all(label in KNOWN for label in metric.labels):
                for values in itertools.product(*(KNOWN[label] for label in metric.labels)):
                    self._begin(metric.name, dict(zip(metric.labels, values, strict=True)))
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._set_again, name=self.THREAD, daemon=True)
        self._thread.start()

    def add(self, name: str, value: float, **labels: str) -> None:
        if value > 0:  # Ray refuses to add nothing
            self._metric(name).inc(value, {"run": self._run, **labels})

    def set(self, name: str, value: float, **labels: str) -> None:
        self._metric(name).set(value, {"run": self._run, **labels})
        self._gauges[name, tuple(labels.items())] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._metric(name).observe(value, {"run": self._run, **labels})

    def close(self) -> None:
        """Ray forgets the gauges within its next two reports."""
        self._is_over.set()
        self._thread.join()

    def _begin(self, name: str, labels: dict[str, str]) -> None:
        self._metric(name)._record(0.0, {"run": self._run, **labels})  # `inc` refuses to add nothing

    def _set_again(self) -> None:
        while not self._is_over.wait(AGAIN_EVERY_S) and ray.is_initialized():
            for (name, labels), value in list(self._gauges.items()):
                self._metric(name).set(value, {"run": self._run, **dict(labels)})

    def _metric(self, name: str) -> Any:
        if name not in self._series:
            metric = METRICS[name]
            tags = ("run", *metric.labels)
            if metric.kind is Kind.HISTOGRAM:
                self._series[name] = Histogram(name, metric.help, list(metric.buckets), tags)
            else:
                kind = Counter if metric.kind is Kind.COUNTER else Gauge
                self._series[name] = kind(name, metric.help, tags)
        return self._series[name]
