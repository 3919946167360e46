"""The comparisons as drawings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wmpo_ray.report.charts import Series, line_chart
from wmpo_ray.report.markup import Markup, tag
from wmpo_ray.report.svg import Plot, Scale, drawing, frame, text, ticks

STYLE = (
    "svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#444}.gridline{stroke:#8883}.axis{stroke:#888}"
    ".line{fill:none;stroke:var(--tone);stroke-width:2.2}.marker{fill:var(--tone)}.leader{fill:none;stroke:#8886}"
    ".band{fill:var(--tone);fill-opacity:.25}.dot circle{fill:var(--tone)}.base{stroke:#888;stroke-dasharray:4 3}"
    ".tone-real{--tone:#2a7f62}.tone-imagined{--tone:#b4589c}.tone-second{--tone:#2f78c4}.tone-third{--tone:#c77d2e}"
    ".tone-strong{--tone:#444}.tone-faint{--tone:#999}.end-label{font-size:11px}"
)
NAMES, WIDTH, ROW, TOP, RIGHT = 250.0, 760.0, 30.0, 10.0, 66.0
TONES = ("real", "imagined", "second", "third", "strong", "faint")


class Row(NamedTuple):
    """A dot with its interval, in points or percent."""

    label: str
    value: float
    low: float
    high: float
    is_ours: bool = False


def picture(content: Markup) -> str:
    """A file of its own."""
    svg = str(content).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, rest = svg.split(">", 1)
    return f"{head}><style>{STYLE}</style>{rest}\n"


def draw_rows(rows: Sequence[Row], title: str, unit: str, zero: float | None = None) -> str:
    """Rows of dots with intervals on one axis; `zero` is marked by a line."""
    values = [value for row in rows for value in (row.low, row.high, row.value)] + ([] if zero is None else [zero])
    steps = ticks(min(values), max(values), 6)
    low, high = min(*steps, *values), max(*steps, *values)
    height = TOP + ROW * len(rows) + 40
    scale, bottom = Scale(low, high, NAMES, WIDTH - RIGHT), height - 40
    parts: list[Markup] = []
    for value in steps:
        x = scale(value)
        parts.append(tag("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="gridline"))
        parts.append(text(x, bottom + 16, f"{value:g}", text_anchor="middle"))
    if zero is not None:
        parts.append(tag("line", x1=scale(zero), x2=scale(zero), y1=TOP, y2=bottom, class_="base"))
    for i, row in enumerate(rows):
        y, left, right = TOP + ROW * (i + 0.5), scale(row.low), scale(row.high)
        bar = tag("rect", x=left, y=y - 6, width=round(max(right - left, 1), 2), height=12, rx=6, class_="band")
        dot = tag("circle", cx=scale(row.value), cy=y, r=5)
        parts.append(tag("g", bar, dot, class_=f"dot tone-{'real' if row.is_ours else 'second'}"))
        parts.append(text(NAMES - 12, y + 4, row.label, text_anchor="end"))
        parts.append(text(WIDTH - RIGHT + 10, y + 4, f"{row.value:.1f}"))
    parts.append(text((NAMES + WIDTH - RIGHT) / 2, height - 6, unit, text_anchor="middle"))
    return picture(drawing(WIDTH, height, title, *parts, kind="rows"))


def draw_lines(curves: dict[str, Sequence[tuple[float, float]]], title: str, x_label: str) -> str:
    """A line for each name."""
    series = [Series(name, tone, points) for (name, points), tone in zip(curves.items(), TONES * 3, strict=False)]
    return picture(line_chart(series, title, x_label, lambda value: f"{value:.0%}", y_low=0.0, y_high=1.0))


def draw_trust(pairs: Sequence[tuple[int, int, float, float]], title: str) -> str:
    """Imagined against real success of each version; on the diagonal they are equal."""
    size = 380.0
    plot = Plot(Scale(0.0, 1.0, 52.0, size - 14), Scale(0.0, 1.0, size - 44, 14), size, size)
    parts = [
        tag("line", x1=plot.x(0), y1=plot.y(0), x2=plot.x(1), y2=plot.y(1), class_="base"),
        frame(plot, "imagined success", lambda value: f"{value:.0%}", False, lambda value: f"{value:.0%}"),
    ]
    seeds = sorted({pair[0] for pair in pairs})
    for seed, update, imagined, real in pairs:
        about = tag("title", f"seed {seed}, update {update}: imagined {imagined:.0%}, real {real:.0%}")
        dot = tag("circle", about, cx=plot.x(imagined), cy=plot.y(real), r=4)
        parts.append(tag("g", dot, class_=f"dot tone-{TONES[seeds.index(seed) % len(TONES)]}"))
    parts.append(text(58, 12, "real success"))
    return picture(drawing(size, size, title, *parts, kind="trust"))
