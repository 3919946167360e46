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
# The last part of the metrics of one of several tasks, and of the live metric's name.
OF_A_TASK = (
    *("real_success_rate", "real_success_low", "real_success_high", "training_success_rate"),
    *("label_agreement_rate", "keep_rate"),
)


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
        for key, value in values.items():
            self._of_task(key, value)
        if "time/driver_s" in values:
            self._meter.add("wmpo_driver_busy_seconds_total", values["time/driver_s"])

    def _of_task(self, key: str, value: float) -> None:
        """`task/NAME/QUANTITY`, where there are several tasks."""
        area, _, rest = key.partition("/")
        task, _, quantity = rest.rpartition("/")
        if area != "task" or not task:
            return
        if quantity in OF_A_TASK:
            self._meter.set(f"wmpo_task_{quantity}", value, task=task)
        elif (outcome := quantity.removesuffix("_groups")) != quantity:
            self._meter.add("wmpo_task_groups_total", value, task=task, outcome=outcome)

    def restart(self, series: str, after_step: int) -> None:
        """A gauge shows the latest value only."""

    def close(self) -> None:
        """The meter's owner closes it."""
