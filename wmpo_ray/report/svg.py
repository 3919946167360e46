"""The parts that every chart is made of: scales, ticks, frame, labels at the end of a line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wmpo_ray.report.markup import Markup, tag

Format = Callable[[float], str]


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] of the data to [start, end] of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


@dataclass(frozen=True)
class Plot:
    """A drawing of `width` x `height` units with the axes of its data."""

    x: Scale
    y: Scale
    width: float
    height: float


def span(values: Sequence[float], low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """Range of an axis: that of the values, widened to `low` and `high` where given, never empty."""
    bottom, top = min(values), max(values)
    bottom = bottom if low is None else min(low, bottom)
    top = top if high is None else max(high, top)
    if top > bottom:
        return bottom, top
    margin = abs(top) / 2 or 0.5
    return (bottom, top + margin) if low is not None else (bottom - margin, top + margin)


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """About `count` round values inside [low, high]; `whole` allows integers only."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def text(x: float, y: float, content: object, **attributes: object) -> Markup:
    return tag("text", content, x=round(x, 2), y=round(y, 2), **attributes)


def frame(plot: Plot, x_label: str, y_format: Format, whole_x: bool = True, x_format: Format | None = None) -> Markup:
    """Horizontal grid with its numbers, numbers below, and the name of the x axis."""
    parts = []
    for value in ticks(plot.y.low, plot.y.high, 4):
        y = plot.y(value)
        parts.append(tag("line", x1=plot.x.start, x2=plot.x.end, y1=y, y2=y, class_="gridline"))
        parts.append(text(plot.x.start - 7, y + 4, y_format(value), text_anchor="end", class_="tick"))
    bottom = plot.y.start
    parts.append(tag("line", x1=plot.x.start, x2=plot.x.end, y1=bottom, y2=bottom, class_="axis"))
    for value in ticks(plot.x.low, plot.x.high, 6, whole=whole_x):
        label = (x_format or "{:g}".format)(value)
        parts.append(text(plot.x(value), bottom + 16, label, text_anchor="middle", class_="tick"))
    middle = (plot.x.start + plot.x.end) / 2
    parts.append(text(middle, plot.height - 4, x_label, text_anchor="middle", class_="axis-label"))
    return tag("g", *parts)


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label heights apart until neighbours are `gap` apart, inside [low, high], in the same order."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [0.0] * len(heights)
    floor = low
    for i in order:
        placed[i] = max(heights[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def drawing(width: float, height: float, title: str, *parts: object, kind: str) -> Markup:
    """The `svg` element, scaled to the width of its card and named for screen readers."""
    return tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title, class_=f"chart {kind}")
