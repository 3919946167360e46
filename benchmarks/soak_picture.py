"""One round of the soak as a drawing: groups trained over time, a mark for every fault."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.soak_faults import Fault
from wmpo_ray.report.markup import Markup, tag
from wmpo_ray.report.svg import Plot, Scale, drawing, frame, text

WIDTH, HEIGHT = 860.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 86.0, 16.0, 118.0, 44.0
ROW = 11.0
TARGETS = {  # row -> colour, readable on light and dark pages
    "imagination": "#4c8dd6",
    "reward": "#2aa198",
    "learner": "#c77d2e",
    "environment": "#8f8f8f",
    "node": "#b4589c",
    "gcs": "#c94f4f",
    "driver": "#7a6fd0",
}
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#888}"
    ".gridline{stroke:#8884;stroke-width:1}.axis{stroke:#888}"
    ".trained{fill:none;stroke:#3f9a5b;stroke-width:2}"
)


def draw(started: float, progress: Sequence[tuple[float, int]], faults: Sequence[Fault]) -> str:
    """SVG text. `progress`: (seconds, groups trained); `faults` have the clock that `started` is of."""
    end, most = max(seconds for seconds, _ in progress), max(1, *(groups for _, groups in progress))
    plot = Plot(Scale(0.0, end, LEFT, WIDTH - RIGHT), Scale(0.0, most, HEIGHT - BOTTOM, TOP), WIDTH, HEIGHT)
    line = tag(
        "polyline", points=" ".join(f"{plot.x(x):g},{plot.y(y):g}" for x, y in _corners(progress)), class_="trained"
    )
    title = f"{len(faults)} faults in one run: groups trained over {end:.0f} s"
    parts = [tag("style", STYLE), frame(plot, "seconds", "{:g}".format), line, *_marks(plot, started, faults)]
    parts.append(text(LEFT + 6, TOP - 6, "groups trained"))
    picture = str(drawing(WIDTH, HEIGHT, title, *parts, kind="soak"))
    return picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _corners(progress: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """The points at which a line of steps turns."""
    kept = [progress[0]]
    for point in progress[1:]:
        if point[1] != kept[-1][1]:
            kept += [(point[0], kept[-1][1]), point]
    return [*kept, (progress[-1][0], kept[-1][1])]


def _marks(plot: Plot, started: float, faults: Sequence[Fault]) -> list[Markup]:
    """A row for each target; hollow where a process was stopped and not killed."""
    marks = []
    for row, (target, colour) in enumerate(TARGETS.items()):
        y = 14.0 + ROW * row
        marks.append(text(LEFT - 10, y + 4, target, text_anchor="end", style=f"fill:{colour}"))
        for fault in faults:
            what, hit = fault.kind.split()
            if hit == target:
                fill = "none" if what in ("stop", "preempt") else colour
                label = tag("title", fault.kind)
                marks.append(
                    tag("circle", label, cx=plot.x(fault.time - started), cy=y, r=3.2, fill=fill, stroke=colour)
                )
    return marks
