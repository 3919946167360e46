"""The metrics of the last update as Prometheus gauges, beside the live metrics of the loop (`live_metrics.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from wmpo_ray.runs.live_metrics import Meter
from wmpo_ray.runs.trackers.tracker import OPTIMIZE

# metric of an update -> live metric
LAST_UPDATE = {
    "policy/clip_fraction": "wmpo_clip_fraction",
    "policy/advantage_std": "wmpo_advantage_spread",
    "policy/grad_norm": "wmpo_gradient_norm",
    "imagined/success_rate": "wmpo_imagined_success_rate",
    "imagined/verified_success_rate": "wmpo_verified_success_rate",
    "rollout/success_rate": "wmpo_rollout_success_rate",
    "real/success_rate": "wmpo_real_success_rate",
    "real/success_low": "wmpo_real_success_low",
    "real/success_high": "wmpo_real_success_high",
    "real/label_agreement": "wmpo_label_agreement_rate",
}


class PrometheusTracker:
    name = "prometheus"

    def __init__(self, meter: Meter):
        self._meter = meter

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        if series != OPTIMIZE:
            return
        for key, name in LAST_UPDATE.items():
            if key in values:
                self._meter.set(name, values[key])
        for statistic in ("mean", "max"):
            if (key := f"policy/ratio_{statistic}") in values:
                self._meter.set("wmpo_ratio", values[key], statistic=statistic)
        if "time/driver_s" in values:
            self._meter.add("wmpo_driver_busy_seconds_total", values["time/driver_s"])

    def restart(self, series: str, after_step: int) -> None:
        """A gauge shows the latest value only."""

    def close(self) -> None:
        """The meter's owner closes it."""
