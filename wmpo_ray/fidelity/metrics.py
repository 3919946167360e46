"""The figures of a fidelity report, by key, and the videos that they are measured on."""

from __future__ import annotations

from typing import NamedTuple

FIDELITY = "fidelity.json"  # in the folder of a run, or of one of its rounds

# What is measured: imagined videos, and two that calibrate them. `STILL` is the first frame repeated, so what can be had
# without a world model; `CEILING` is the real frames passed through the codec of the world model, so the best it could do.
IMAGINED, STILL, CEILING = "imagined", "still", "ceiling"
SOURCES = (IMAGINED, STILL, CEILING)


class Metric(NamedTuple):
    """`to_the_end`: an episode has a value of every step, also of those after its end."""

    title: str
    unit: str
    higher_is_better: bool
    to_the_end: bool = False


def metrics_for(position_unit: str) -> dict[str, Metric]:
    """All metrics that there are; a report has those that could be measured."""
    return {
        "psnr_db": Metric("PSNR", "dB", True),
        "ssim": Metric("SSIM", "", True),
        "lpips": Metric("LPIPS", "", False),
        "object_error": Metric("object position error", position_unit, False),
        "object_lost": Metric("objects not found", "share", False),
        "agent_error": Metric("action-following error", position_unit, False),
        "label_agreement": Metric("labels right by step", "share", True, to_the_end=True),
    }
