"""The trackers by name, those of other packages included (entry points `wmpo_ray.trackers`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType

from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.runs.live_metrics import Meter
from wmpo_ray.runs.trackers.jsonl import JsonlTracker
from wmpo_ray.runs.trackers.prometheus import PrometheusTracker
from wmpo_ray.runs.trackers.tensorboard import TensorBoardTracker
from wmpo_ray.runs.trackers.tracker import Tracker, Trackers

GROUP = "wmpo_ray.trackers"
Make = Callable[[Path, Config, Meter], Tracker]


def _lazy(module: str, name: str) -> Make:
    return lambda folder, config, meter: getattr(import_module(module), name)(folder, config)


TRACKERS: Mapping[str, Make] = MappingProxyType(
    {
        "tensorboard": lambda folder, config, meter: TensorBoardTracker(folder),
        "prometheus": lambda folder, config, meter: PrometheusTracker(meter),
        "wandb": _lazy("wmpo_ray.runs.trackers.wandb", "WandbTracker"),
        "mlflow": _lazy("wmpo_ray.runs.trackers.mlflow", "MlflowTracker"),
    }
)


def known_trackers() -> dict[str, Make]:
    """Our own and those that installed packages bring: `NAME = "module:make"`, called as `make(folder, config, meter)`."""
    others = {point.name: point for point in entry_points(group=GROUP) if point.name not in TRACKERS}
    return {**TRACKERS, **{name: _loading(point) for name, point in others.items()}}


def _loading(point) -> Make:
    return lambda folder, config, meter: point.load()(folder, config, meter)


def check_trackers(config: Config) -> None:
    """Raises ConfigError for an unknown tracker."""
    known = known_trackers()
    for name in config.monitoring.trackers:
        if name not in known:
            raise ConfigError(f"monitoring.trackers names {name!r}; known are {', '.join(sorted(known))}")


def make_trackers(
    config: Config, folder: Path, meter: Meter, warn: Callable[[str], None] = logging.warning
) -> Trackers:
    """`metrics.jsonl` and what `monitoring.trackers` names.

    Raises ConfigError for an unknown name, and for a tracker whose package is not installed.
    """
    check_trackers(config)
    known, made = known_trackers(), []
    for name in config.monitoring.trackers:
        try:
            made.append(known[name](folder, config, meter))
        except ImportError as error:
            raise ConfigError(
                f"monitoring.trackers names {name!r}, whose package is missing ({error}); "
                f'pip install "wmpo-ray[{name}]", or take it out of monitoring.trackers'
            ) from error
    return Trackers(JsonlTracker(folder), made, warn)
