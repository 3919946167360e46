"""What `fidelity.json` of a run, or of one of its rounds, says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wmpo_ray.core.types import Episodes
from wmpo_ray.fidelity.failure_modes import compare_modes, share
from wmpo_ray.fidelity.measurement import Measured
from wmpo_ray.fidelity.metrics import CEILING, IMAGINED, SOURCES, STILL, Metric, metrics_for
from wmpo_ray.rollout.fidelity import binary_report
from wmpo_ray.statistics.agreement import safe_horizon
from wmpo_ray.statistics.episode_curves import Curve, Resamples

FORMAT = 1
HALF_DB = 10 * math.log10(2)  # by which half of a squared error has the higher ratio


def describe(
    measured: Measured,
    episodes: Episodes,
    position_unit: str,
    failure_names: Sequence[str],
    label_bound: float,
    seed: int,
) -> dict[str, Any]:
    """The figures with 95% intervals, over episodes that are resampled as a whole, or Wilson's of a share. label_bound: under which labels are no longer safe.

    `metrics` has, for each metric and each source, the mean over all frames and the curve over steps; for imagined videos
    also the drift: the change of a step, and the step at which the mean is first worse than halfway from the ceiling to the
    still picture (PSNR: than half the squared error of the still picture).
    """
    resamples = Resamples(len(episodes), seed)
    steps = np.arange(1, episodes.actions.shape[1] + 1)
    table = metrics_for(position_unit)
    content: dict[str, Any] = {
        "format": FORMAT,
        "num_episodes": len(episodes),
        "horizon": len(steps),
        "num_by_step": (episodes.lengths[:, None] >= steps).sum(0).tolist(),
        "metrics": {
            name: _metric(table[name], measured.values[name], resamples) for name in table if name in measured.values
        },
    }
    if measured.simulated is not None:
        content["positions_from_simulator"] = float(measured.simulated.mean())
    if measured.success:
        content["labels"] = _labels(measured, episodes, label_bound)
        modes = dict(measured.modes)
        content["failures"] = compare_modes(modes.pop("real"), modes, failure_names)
    return content


def _metric(metric: Metric, values: dict[str, np.ndarray], resamples: Resamples) -> dict[str, Any]:
    curves = {source: resamples.curve(values[source]) for source in SOURCES}
    bound = _bound(metric, curves)
    crossing = resamples.crossing(values[IMAGINED], bound, metric.higher_is_better)
    return {
        **metric._asdict(),
        "of": {source: _curve(curve) for source, curve in curves.items()},
        "drift": {"slope": curves[IMAGINED].slope._asdict(), "bound": bound, "passed": crossing._asdict()},
    }


def _bound(metric: Metric, curves: dict[str, Curve]) -> float:
    """NaN where a still picture is as good as the ceiling."""
    still, ceiling = curves[STILL].mean.value, curves[CEILING].mean.value
    if not (still < ceiling if metric.higher_is_better else still > ceiling):
        return math.nan
    return still + HALF_DB if metric.unit == "dB" else (still + ceiling) / 2


def _curve(curve: Curve) -> dict[str, Any]:
    by_step = {"by_step": curve.by_step, "low_by_step": curve.low, "high_by_step": curve.high}
    return {**curve.mean._asdict(), **{name: values.tolist() for name, values in by_step.items()}}


def _labels(measured: Measured, episodes: Episodes, bound: float) -> dict[str, Any]:
    """Success by the judge against real success, at the end; and for how long labels by step are safe."""
    found: dict[str, Any] = {"bound": bound}
    for source, success in measured.success.items():
        by_step = measured.values["label_agreement"][source].mean(0)
        found[source] = {
            **binary_report(success, episodes.success),
            "agreement": share(success == episodes.success),
            "safe_horizon": safe_horizon(by_step, bound),
        }
    return found
