"""What a server tells Prometheus, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

SECONDS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class ServingMetrics:
    """Counted here and nowhere else; `refused` is what a locked server counts with."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.act_seconds = Histogram(
            "wmpo_serve_act_seconds", "From a question to its answer, on the server", buckets=SECONDS, registry=own
        )
        self.policy_seconds = Histogram(
            "wmpo_serve_policy_seconds", "A batch in the policy", buckets=SECONDS, registry=own
        )
        self.batch_size = Histogram("wmpo_serve_batch_robots", "Robots in a batch", buckets=SIZES, registry=own)
        self.chunks = Counter("wmpo_serve_chunks_total", "Chunks of actions", ["updates", "digest"], registry=own)
        self.swaps = Counter("wmpo_serve_weight_swaps_total", "New weights that were taken", registry=own)
        self.updates = Gauge("wmpo_serve_policy_updates", "Updates of the policy that acts", registry=own)
        self.refusals = Counter("wmpo_serve_refusals_total", "Calls that were refused", ["reason"], registry=own)
        self.uploads = Counter("wmpo_serve_episodes_total", "Episodes that have come", ["verdict"], registry=own)
        self.upload_bytes = Counter("wmpo_serve_upload_bytes_total", "Bytes of episodes that have come", registry=own)
        self._sessions = Gauge("wmpo_serve_sessions", "Robots that have said hello", registry=own)

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
