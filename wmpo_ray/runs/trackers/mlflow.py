"""MLflow (`pip install "wmpo-ray[mlflow]"`): a server, or a database file such as `sqlite:///mlflow.db`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmpo_ray.config.run import Config
from wmpo_ray.runs.trackers.identity import remembered
from wmpo_ray.runs.trackers.tracker import prefix

MAX_METRICS = 1000  # of one request, MLflow's own limit


class MlflowTracker:
    """One MLflow run for each run's folder. Raises ImportError where mlflow is not installed.

    Metrics are sent by MLflow's own thread, so a slow server does not hold up the training.
    """

    name = "mlflow"

    def __init__(self, folder: Path, config: Config):
        from mlflow import MlflowClient

        settings = config.monitoring.mlflow
        self._sending: list[Any] = []
        self._client = MlflowClient(settings.tracking_uri or None)
        self._run_id = remembered(folder, self.name, lambda: self._create(settings.experiment, config))

    def _create(self, name: str, config: Config) -> str:
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        run_id = self._client.create_run(number, run_name=config.name).info.run_id
        self._client.log_dict(run_id, config.model_dump(mode="json"), "config.json")
        return run_id

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(f"{prefix(series)}{name}", value, now, step) for name, value in values.items()]
        for first in range(0, len(metrics), MAX_METRICS):
            part = metrics[first : first + MAX_METRICS]
            self._sending = [
                self._client.log_batch(self._run_id, part, synchronous=False)
            ]  # in order: the last suffices

    def restart(self, series: str, after_step: int) -> None:
        """MLflow keeps every value of a step and shows the latest one."""

    def close(self) -> None:
        for operation in self._sending:
            operation.wait()
        self._client.set_terminated(self._run_id)
