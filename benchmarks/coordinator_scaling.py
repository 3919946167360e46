"""Efficiency of the main loop from 8 to 256 imagination actors: table and picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from wmpo_ray.report.charts import Series, line_chart

SERVICE_TIMES = Path(__file__).with_name("service_times.json")
PICTURE = Path(__file__).parents[1] / "docs" / "scaling.svg"

GROUPS_PER_UPDATE = 64
ACTORS = (8, 16, 32, 64, 128, 256)


class Point(NamedTuple):
    actors: int
    update_s: float
    efficiency: float  # speed-up over 8 actors / ideal
    surplus_share: float
    exposed_share: float  # of the learner's time


def scaling_table(curves: dict[str, list[Point]]) -> str:
    lines = [f"{'efficiency (seconds of an update, surplus)':<44}" + "".join(f"{count:>22}" for count in ACTORS)]
    for name, points in curves.items():
        cells = (f"{p.efficiency:.2f} ({p.update_s:.0f} s, {p.surplus_share:.1%})" for p in points)
        lines.append(f"{name:<44}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


STYLE = """
svg { --grid: #e4e4e4; --soft: #555; --third: #999; background: #fff; font-family: sans-serif; }
.tone-a { --tone: #1b6ca8; } .tone-b { --tone: #c2571a; } .tone-c { --tone: #2c8a4b; } .tone-d { --tone: #7a4fa3; }
.tone-e { --tone: #a8324a; } .tone-f { --tone: #666; } .tone-g { --tone: #b08900; }
.gridline { stroke: var(--grid); } .axis { stroke: var(--third); } .tick, .axis-label { fill: var(--soft); font-size: 9px; }
.line { fill: none; stroke: var(--tone); stroke-width: 1.8; } .dashed { stroke-dasharray: 5 3; }
.marker { fill: var(--tone); } .name { fill: var(--tone); font-size: 9px; } .value { fill: var(--soft); font-size: 9px; }
"""


SHORT_NAMES = {  # there is little room beside the picture
    "whole groups": "whole groups",
    "a trajectory a request": "trajectories",
    "and a batch that fills": "+ filled",
    "and a learner that does not wait": "+ streamed",
    "and 16 GPUs for it": "+ 16 GPUs",
    "and gradients summed group by group": "+ summed",
    "whole groups, staleness 1": "groups, stale",
}


def draw_scaling(curves: dict[str, list[Point]], path: Path = PICTURE) -> None:
    series = [
        Series(SHORT_NAMES[name], tone, [(math.log2(p.actors), p.efficiency) for p in points], stroke="solid")
        for (name, points), tone in zip(curves.items(), "abcdefg", strict=True)
    ]
    chart = line_chart(
        series,
        "Efficiency of 8 to 256 imagination actors",
        "imagination actors (efficiency: speed-up over 8 actors / ideal)",
        y_format="{:.2f}".format,
        y_low=0.0,
        x_format=lambda exponent: f"{2**exponent:g}",
    )
    text = str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, rest = text.split(">", 1)
    path.write_text(f"{head}><style>{STYLE}</style>{rest}\n")


def explain(curves: dict[str, list[Point]]) -> str:
    times = json.loads(SERVICE_TIMES.read_text())
    group_s, update_s = times["per_group"]["rollout"]["seconds"], times["per_call"]["update"]["seconds"]
    rounds = math.log2(GROUPS_PER_UPDATE) + 1
    return (
        f"Where whole groups bend: a group takes {group_s:g} s on one actor however many there are, and the learner\n"
        f"{update_s:g} s after it. Issued are {GROUPS_PER_UPDATE} at first, then as many as were rejected, about {rounds:.0f} rounds at a keep rate of\n"
        "0.5, so from 64 actors on more have nothing to do. A trajectory a request makes every round eight times shorter;\n"
        "a batch that fills with a probability of 0.9 needs one or two rounds instead of seven, for surplus on actors that\n"
        "would idle; a learner that trains each mini-batch as its groups are settled leaves only the last ones to wait for."
    )
