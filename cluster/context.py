"""What every stage is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.preemption import is_leaving
from cluster.progress import Reporter
from cluster.runtime import Runtime
from wmpo_ray.config import Config
from wmpo_ray.data.trajectory_store import load_episodes
from wmpo_ray.run_state import RunFolder
from wmpo_ray.types import Episodes


class RunContext:
    """Config, folder and the runtime, which is started when a stage first needs it."""

    def __init__(
        self, config: Config, folder: RunFolder, reporter: Reporter, start: Callable[[], Runtime], force: bool
    ):
        self.config, self.folder, self.reporter, self.force = config, folder, reporter, force
        self._start = start
        self._runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        if self._runtime is None:
            self._runtime = self._start()
        return self._runtime

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
        first = len(episodes) - max(1, round(len(episodes) * self.config.collect.validation_share))
        return episodes.rows(slice(first)), episodes.rows(slice(first, None))
