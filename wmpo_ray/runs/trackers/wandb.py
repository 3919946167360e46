"""Weights & Biases (`pip install "wmpo-ray[wandb]"`), online or offline: `wandb sync RUN/wandb/offline-run-*` uploads later."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmpo_ray.config.run import Config
from wmpo_ray.runs.trackers.identity import remembered
from wmpo_ray.runs.trackers.tracker import prefix, step_name


class WandbTracker:
    """One W&B run for each run's folder, resumed when the run is. Raises ImportError where wandb is not installed.

    W&B counts steps of its own, which only grow; each series has an axis of its own instead, so that steps that are
    logged once more after a resume land where they belong.
    """

    name = "wandb"

    def __init__(self, folder: Path, config: Config):
        import wandb

        settings = config.monitoring.wandb
        self._axes: set[str] = set()
        self._run: Any = wandb.init(
            project=settings.project,
            entity=settings.entity or None,
            group=settings.group or None,
            mode=settings.mode,
            name=config.name,
            id=remembered(folder, self.name, lambda: secrets.token_hex(4)),
            resume="allow",
            dir=str(folder),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        axis = f"{prefix(series)}{step_name(series)}"
        named = {f"{prefix(series)}{name}": value for name, value in values.items()}
        for name in named.keys() - self._axes:
            self._run.define_metric(name, step_metric=axis)
        self._axes |= named.keys()
        self._run.log({axis: step, **named})

    def restart(self, series: str, after_step: int) -> None:
        """Sent values cannot be withdrawn; the same values are sent again."""

    def close(self) -> None:
        self._run.finish()
