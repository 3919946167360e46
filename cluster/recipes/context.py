"""The context that every stage receives: configuration, folders, runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from cluster.events.event_log import emit
from cluster.events.progress import Reporter
from cluster.events.run_log import TrainingCurve
from cluster.events.status import Status
from cluster.host.preemption import is_leaving
from cluster.recipes.rounds import config_of_round, round_folder
from cluster.recording.recorder import EpisodeRecorder
from cluster.runtimes.runtime import Runtime
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.episodes import concatenate_episodes
from wmpo_ray.data.store import load_episodes
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.live_metrics import Meter, NoMeter, PrometheusMeter
from wmpo_ray.runs.trackers.table import make_trackers
from wmpo_ray.runs.trackers.tracker import Trackers


class Services:
    """Shared by all stages of one process: the runtime, started when first needed, live metrics, trackers."""

    def __init__(self, start: Callable[[], Runtime], config: Config, run_name: str, status: Status | None = None):
        self._start, self._config, self._run_name, self._status = start, config, run_name, status
        self._runtime: Runtime | None = None
        self._trackers: tuple[Path, Trackers] | None = None

    @property
    def runtime(self) -> Runtime:
        if self._runtime is None:
            self._runtime = self._start()
            if self._status is not None:
                self._status.update(**self._runtime.doors)
        return self._runtime

    @cached_property
    def meter(self) -> Meter:
        """Live metrics go to Ray's own or, without Ray, to a port of this process if one is asked for."""
        run, port = self._run_name, self._config.monitoring.port
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
        emit("metrics.served", f"live metrics on http://127.0.0.1:{port}/metrics", port=port)
        return meter

    def trackers(self, root: Path) -> Trackers:
        """The trackers of the round in `root`. Those of another round are closed: a tracker knows one run at a time.

        Raises ConfigError for a tracker whose package is not installed.
        """
        if self._trackers is not None and self._trackers[0] != root:
            self._close_trackers()
        if self._trackers is None:
            meter = self.meter if self._config.monitoring.metrics else NoMeter()
            self._trackers = root, make_trackers(self._config, root, meter, _warn_of_tracker)
        return self._trackers[1]

    def close(self) -> None:
        with ExitStack() as at_end:  # in reverse, and each of them whatever fails before
            # A cluster that was started here ends with this process; taking it down in order takes longer than there is.
            if self._runtime is not None and not is_leaving():
                at_end.callback(self._runtime.shutdown)
                if "meter" in self.__dict__:
                    at_end.callback(self.meter.close)
            at_end.callback(self._close_trackers)

    def _close_trackers(self) -> None:
        if self._trackers is not None:
            (_, trackers), self._trackers = self._trackers, None
            trackers.close()


def _warn_of_tracker(message: str) -> None:
    emit("tracker.failed", message, logging.WARNING)


class RunContext:
    """Configuration, folders and runtime of one round; round 1 stands directly in the run's folder."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        reporter: Reporter,
        start: Callable[[], Runtime],
        force: bool,
        status: Status | None = None,
        round: int = 1,
        services: Services | None = None,
    ):
        self.folder, self.reporter, self.force, self.status, self.round = folder, reporter, force, status, round
        self.run_config = config
        self.config = config_of_round(config, folder.path, round)
        self.root = round_folder(folder.path, round)
        self.services = services or Services(start, config, folder.path.name, status)

    @property
    def runtime(self) -> Runtime:
        return self.services.runtime

    @property
    def meter(self) -> Meter:
        return self.services.meter

    @property
    def trackers(self) -> Trackers:
        """Where this round's metrics go; made when they are first asked for."""
        return self.services.trackers(self.root)

    def recorder(self, stage: str, config: Config | None = None) -> EpisodeRecorder:
        """Workers that record and evaluate episodes of the real environment for a stage; `config`: not the round's."""
        services = self.services
        return EpisodeRecorder(
            config or self.config, self.root, stage, self.reporter, lambda: services.runtime, lambda: services.meter
        )

    def curve(self, training: str, num_steps: int) -> TrainingCurve:
        """Where a supervised training logs its loss."""
        return TrainingCurve(self.trackers, training, num_steps)

    def of_round(self, round: int) -> RunContext:
        """The same for another round."""
        start, status = lambda: self.services.runtime, self.status
        return RunContext(self.run_config, self.folder, self.reporter, start, self.force, status, round, self.services)

    def make_folders(self) -> None:
        for name in ("checkpoints", "trajectories", "videos", "models"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        self.services.close()

    # -- what stages leave for each other ------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def training_checkpoints(self, training: str) -> Path:
        """Checkpoint folder of a supervised training."""
        return self.checkpoints / training

    @property
    def videos(self) -> Path:
        return self.root / "videos"

    def model(self, name: str) -> Path:
        """Folder of a model of this round."""
        return self.root / "models" / name

    @property
    def acting_policy(self) -> Path:
        """The policy that collects episodes and is improved: the base policy or that of the previous round."""
        if self.round == 1:
            return self.model("base-policy")
        return round_folder(self.folder.path, self.round - 1) / "models" / "policy"

    def trajectory_file(self, name: str) -> Path:
        """File of the episodes with this name; demonstrations are made once for all rounds."""
        root = self.folder.path if name == "demos" else self.root
        return (root / "trajectories" / f"{name}.parquet").absolute()

    def files_so_far(self, name: str) -> list[Path]:
        """The files of this name of all rounds up to this one, which comes last."""
        return [self.of_round(round).trajectory_file(name) for round in range(1, self.round + 1)]

    def episodes(self, name: str) -> Episodes:
        try:
            return load_episodes(self.trajectory_file(name))
        except UserError as error:
            stage = "demos" if name == "demos" else "collect"
            raise UserError(f"{error}; `wmpo stage {stage}` with the same config and --out records it again") from error

    def collected(self) -> tuple[Episodes, Episodes]:
        """Real episodes: (for training: those of all earlier rounds and most of this one's, this one's for validation).

        Validation is on episodes of the acting policy, because that is what the models must be right about.
        """
        earlier = [load_episodes(path) for path in self.files_so_far("collect")[:-1]]
        episodes = self.episodes("collect")
        first = len(episodes) - self.num_validation(len(episodes))
        train = episodes.rows(slice(first))
        return concatenate_episodes([*earlier, train]) if earlier else train, episodes.rows(slice(first, None))

    def num_validation(self, count: int) -> int:
        """How many of `count` real episodes, taken from the end, are kept for validation."""
        return max(1, round(count * self.config.collect.validation_share))
