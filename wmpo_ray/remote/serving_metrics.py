"""What a server tells Prometheus, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from wmpo_ray.runs.live_metrics import Kind, Metric

SECONDS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
ACT = Metric("wmpo_serve_act_seconds", Kind.HISTOGRAM, "From a question to its answer, on the server", (), SECONDS)
POLICY = Metric("wmpo_serve_policy_seconds", Kind.HISTOGRAM, "A batch in the policy", (), SECONDS)
BATCH = Metric("wmpo_serve_batch_robots", Kind.HISTOGRAM, "Robots in a batch", (), SIZES)
CHUNKS = Metric("wmpo_serve_chunks_total", Kind.COUNTER, "Chunks of actions", ("updates", "digest"))
SWAPS = Metric("wmpo_serve_weight_swaps_total", Kind.COUNTER, "New weights that were taken")
UPDATES = Metric("wmpo_serve_policy_updates", Kind.GAUGE, "Updates of the policy that acts")
REFUSALS = Metric("wmpo_serve_refusals_total", Kind.COUNTER, "Calls that were refused", ("reason",))
EPISODES = Metric("wmpo_serve_episodes_total", Kind.COUNTER, "Episodes that have come", ("verdict",))
BYTES = Metric("wmpo_serve_upload_bytes_total", Kind.COUNTER, "Bytes of episodes that have come")
SESSIONS = Metric("wmpo_serve_sessions", Kind.GAUGE, "Robots that have said hello")
SERVING = {
    each.name: each for each in (ACT, POLICY, BATCH, CHUNKS, SWAPS, UPDATES, REFUSALS, EPISODES, BYTES, SESSIONS)
}


class ServingMetrics:
    """Counted here and nowhere else; `refused` is what a locked server counts with."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.act_seconds, self.policy_seconds = self._histogram(ACT), self._histogram(POLICY)
        self.batch_size = self._histogram(BATCH)
        self.chunks, self.swaps = self._counter(CHUNKS), self._counter(SWAPS)
        self.refusals, self.uploads = self._counter(REFUSALS), self._counter(EPISODES)
        self.upload_bytes = self._counter(BYTES)
        self.updates, self._sessions = self._gauge(UPDATES), self._gauge(SESSIONS)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry)

    def refused(self, reason: str) -> None:
        self.refusals.labels(reason).inc()

    def watch_sessions(self, count: Callable[[], int]) -> None:
        self._sessions.set_function(count)

    def value(self, name: str, **labels: str) -> float:
        """The present value of a sample, 0 where there is none."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def listen(self, port: int) -> int:
        """Serve them on 127.0.0.1; port 0: a free one; returns the port."""
        server, _ = start_http_server(port, "127.0.0.1", self.registry)
        return int(server.server_port)
