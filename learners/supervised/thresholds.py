"""Chooses the threshold of a reward model on episodes that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.statistics import rate_bound, trials_needed
from wmpo_ray.rollout.fidelity import binary_report

GRID = np.round(np.linspace(0.02, 0.98, 97), 3)
STRICT = np.array([0.985, 0.99, 0.995, 0.999])  # a trained model is sure: what a bound asks for may lie beyond the grid
Curve = list[dict[str, float]]


class Judged(NamedTuple):
    """Episodes of one world, with what the reward model and the world say of them."""

    best: np.ndarray  # [M] highest window probability of each
    success: np.ndarray  # [M] bool


def choose_threshold(best_probability: np.ndarray, success: np.ndarray) -> tuple[float, Curve]:
    """The threshold that maximises F1 on held-out trajectories, and the whole curve.

    best_probability [M]: highest window probability of each trajectory. Among equals the middle of the widest run.
    """
    curve = [_point(threshold, best_probability, success) for threshold in GRID]
    return _best_of(curve), curve


def choose_bounded_threshold(worlds: Sequence[Judged], max_rate: float) -> tuple[float, Curve]:
    """The same among the thresholds that call few failures successes, in each world by itself.

    Clopper and Pearson's 95% upper bound of the rate must not exceed `max_rate`. The true rate can only fall as the
    threshold rises, so the bound holds for the chosen one at 95% although it was chosen by the same episodes (Bates et
    al. 2021, arXiv 2101.02703, Theorem 1), as long as every stricter threshold passes too, which is what is asked here.
    Episodes of two worlds that share their actions are not independent, so they are not pooled.

    Raises UserError where no threshold is strict enough, with the failures that would be needed.
    """
    grid = np.concatenate([GRID, STRICT])
    bounds = [max(false_positive_bound(one, threshold) for one in worlds) for threshold in grid]
    too_high = [i for i, bound in enumerate(bounds) if bound > max_rate]
    allowed = grid[max(too_high) + 1 :] if too_high else grid
    if not len(allowed):
        raise UserError(_too_many(max_rate, bounds[-1], worlds))
    best, success = (np.concatenate(parts) for parts in zip(*worlds, strict=True))
    curve = [_point(threshold, best, success) for threshold in grid]
    return _best_of([point for point in curve if point["threshold"] in allowed]), curve


def check_failures(worlds: Sequence[Judged], max_rate: float) -> None:
    """Raises UserError where no reward model at all could be shown to keep the bound, before one is trained."""
    best_bound = max(rate_bound(0, int((~one.success).sum())) for one in worlds)
    if best_bound > max_rate:
        raise UserError(_too_many(max_rate, best_bound, worlds))


def _too_many(max_rate: float, shown: float, worlds: Sequence[Judged]) -> str:
    num = min(int((~one.success).sum()) for one in worlds)
    return (
        f"reward.max_false_positive_rate={max_rate:g}: {num} failed episodes of validation show at best that the rate is "
        f"below {shown:.3f}, and {trials_needed(max_rate)} without one mistake would show this bound; collect more "
        "(collect.num_trajectories), train the reward model longer (reward.steps), or raise reward.max_false_positive_rate"
    )


def false_positive_bound(judged: Judged, threshold: float) -> float:
    """The 95% upper bound of the rate at which a failure of this world reaches the threshold."""
    of_failures = judged.best[~judged.success]
    return rate_bound(int((of_failures >= threshold).sum()), len(of_failures))


def _point(threshold: float, best: np.ndarray, success: np.ndarray) -> dict[str, float]:
    report = binary_report(best >= threshold, success)
    true_positive = float((best >= threshold)[success].sum())
    predicted = report["predicted_rate"] * report["num"]
    return {
        "threshold": float(threshold),
        "f1": report["f1"],
        "precision": true_positive / predicted if predicted else 1.0,
        "recall": true_positive / max(float(success.sum()), 1.0),
    }


def _best_of(curve: Curve) -> float:
    f1 = np.array([point["f1"] for point in curve])
    widest = max(_equal_runs(np.flatnonzero(f1 >= f1.max() - 1e-9)), key=len)
    return curve[widest[len(widest) // 2]]["threshold"]


def _equal_runs(index: np.ndarray) -> Sequence[np.ndarray]:
    return np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)
