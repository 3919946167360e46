"""The trust card: does imagination say what reality does? Everything in it comes from a run's own metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wmpo_ray.statistics.agreement import correlation, mean_maximum_rank_violation, rank_correlation

IMAGINED, REAL = "imagined/success_rate", "real/success_rate"
FALSE_POSITIVES = "real/false_positive_rate"
MIN_RISE = 0.05  # of imagined success while the real one falls: exploitation, and no noise any more


def versions(lines: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float]]:
    """(updates, imagined success, real success) of each version of the policy that was measured in both worlds.

    The metrics of an update describe rollouts of the weights before it; real success is of the weights after it.
    """
    imagined = {int(line["update"]) - 1: float(line[IMAGINED]) for line in lines if _is_number(line.get(IMAGINED))}
    real = {int(line["update"]): float(line[REAL]) for line in lines if _is_number(line.get(REAL))}
    return [(update, imagined[update], real[update]) for update in sorted(imagined.keys() & real.keys())]


def trust_card(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """From the lines of `metrics.jsonl`; empty where nothing was both imagined and measured.

    `pearson`, `spearman`, `rank_violation`: imagined against real success over versions of the policy.
    `lift`: real gain over imagined gain, from the first version to the last. `gap`: imagined minus real success of the
    last one. `exploited`: best imagined success minus the real success of that version, so how much the policy wins
    from the world model alone. `closed_loop_*`: labels of imagined rollouts against execution of the same actions.
    """
    found = versions(lines)
    if not found:
        return {}
    _, imagined, real = (np.array(values, float) for values in zip(*found, strict=True))
    gain, best = imagined[-1] - imagined[0], int(imagined.argmax())
    card: dict[str, Any] = {
        "versions": len(found),
        "pearson": correlation(imagined, real),
        "spearman": rank_correlation(imagined, real),
        "rank_violation": mean_maximum_rank_violation(imagined, real),
        "lift": float((real[-1] - real[0]) / gain) if gain > 0 else None,
        "gap": float(imagined[-1] - real[-1]),
        "exploited": float(imagined[best] - real[best]),
    }
    return card | _closed_loop(lines)


def _closed_loop(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    both = [
        (line["real/label_agreement"], line[FALSE_POSITIVES])
        for line in lines
        if _is_number(line.get("real/label_agreement")) and _is_number(line.get(FALSE_POSITIVES))
    ]
    if not both:
        return {}
    agreement, positives = np.mean(both, 0)
    return {
        "closed_loop_agreement": float(agreement),
        "closed_loop_false_positives": float(positives),
        "closed_loop_false_negatives": float(1 - agreement - positives),
    }


def exploitation(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """What to say while imagined success rises and the real one falls; None if it does not.

    The last version is compared with the one of the best real success.
    """
    found = versions(lines)
    if len(found) < 2:
        return None
    best = max(found, key=lambda version: version[2])
    _, imagined, real = found[-1]
    if imagined - best[1] < MIN_RISE or best[2] - real < MIN_RISE:
        return None
    return (
        f"imagined success rose from {best[1]:.0%} to {imagined:.0%} since update {best[0]} while the real one fell from "
        f"{best[2]:.0%} to {real:.0%}: the policy exploits the world model; stop at that update, or collect and align again"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


class TrustWatch:
    """Watches imagined and real success while the policy is trained."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, Any]] = {}
        self._is_warned = False

    def note(self, update: int, metrics: Mapping[str, Any]) -> str | None:
        """Take the metrics of an update; returns `exploitation` the first time that there is any."""
        self._lines.setdefault(update, {"update": update}).update(metrics)
        text = None if self._is_warned else exploitation(list(self._lines.values()))
        self._is_warned = self._is_warned or text is not None
        return text
