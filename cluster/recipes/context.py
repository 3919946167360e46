"""What every stage is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from cluster.events.event_log import emit
from cluster.events.progress import Reporter
from cluster.events.status import Status
from cluster.host.preemption import is_leaving
from cluster.runtimes.runtime import Runtime
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.store import load_episodes
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.live_metrics import Meter, NoMeter, PrometheusMeter


class RunContext:
    """Config, folder and the runtime, which is started when a stage first needs it."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        reporter: Reporter,
        start: Callable[[], Runtime],
        force: bool,
        status: Status | None = None,
    ):
        self.config, self.folder, self.reporter, self.force, self.status = config, folder, reporter, force, status
        self._start = start
        self._runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        if self._runtime is None:
            self._runtime = self._start()
            if self.status is not None:
                self.status.update(**self._runtime.doors)
        return self._runtime

    @cached_property
    def meter(self) -> Meter:
        """Where live figures go: to Ray's metrics, or to a port of this process's own if one is asked for."""
        run, port = self.folder.path.name, self.config.monitoring.port
        if self.runtime.doors:
            from cluster.events.ray_metrics import RayMeter

            return RayMeter(run)
        if not port:
            return NoMeter()
        meter = PrometheusMeter(run)
        try:
            meter.serve(port)
        except OSError as error:
            raise UserError(f"monitoring.port={port}: {error.strerror}; set another port, or 0 for none") from error
        emit("metrics.served", f"live figures on http://127.0.0.1:{port}/metrics", port=port)
        return meter

    def close(self) -> None:
        # A cluster that was started here ends with this process; taking it down in order takes longer than there is.
        if self._runtime is not None and not is_leaving():
            self._runtime.shutdown()

    # -- what stages leave for each other ------------------------------------------------------------------------

    def model(self, name: str) -> Path:
        return self.folder.models / name

    def episodes(self, name: str) -> Episodes:
        return load_episodes(self.folder.trajectories / f"{name}.parquet")

    def collected(self) -> tuple[Episodes, Episodes]:
        """The P real episodes of the base policy: (for training, for validation)."""
        episodes = self.episodes("collect")
        first = len(episodes) - self.num_validation(len(episodes))
        return episodes.rows(slice(first)), episodes.rows(slice(first, None))

    def num_validation(self, count: int) -> int:
        """How many of so many real episodes, the last of them, are kept for validation."""
        return max(1, round(count * self.config.collect.validation_share))
