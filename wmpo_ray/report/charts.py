"""Charts as inline SVG. Colours come from the page's style sheet: a `tone` is the name of a meaning, not a colour."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from wmpo_ray.report.formats import compact, percent
from wmpo_ray.report.markup import Markup, join, tag
from wmpo_ray.report.svg import Format, Plot, Scale, drawing, frame, span, spread, text, ticks

LEFT, TOP, BOTTOM = 46.0, 12.0, 40.0
MAX_MARKED_POINTS = 40
PALE_BAR_WIDTH = 14.0


@dataclass(frozen=True)
class Size:
    """Units of a drawing, about the pixels it gets on a page; `right` is the room for names at the ends of lines."""

    width: float
    height: float
    right: float
    kind: str


WIDE = Size(480.0, 226.0, 116.0, "wide-chart")
SMALL = Size(340.0, 180.0, 78.0, "small-chart")


@dataclass(frozen=True)
class Series:
    """One line: points (x, y), and the interval (low, high) of each point where there is one."""

    label: str
    tone: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()  # as many as points, or none
    stroke: str = "solid"  # "solid", "dashed", "dotted": a second sign beside the colour


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval."""

    label: str
    tone: str
    value: float
    low: float
    high: float


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_format: Format = compact,
    y_low: float | None = None,
    y_high: float | None = None,
    x_format: Format | None = None,
    rule: tuple[float, str] | None = None,
    size: Size = WIDE,
    bars: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Lines with bands, named at their right end. `rule` draws a vertical line (x, label). Needs at least one point.

    `bars`: pale ones (x, y) behind the lines, on the same axes.
    """
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + [
        end for one in series for pair in one.intervals for end in pair
    ]
    x_range = span(xs + [rule[0]] if rule else xs)
    plot = Plot(
        Scale(*x_range, LEFT, size.width - size.right),
        Scale(*span(ys, y_low, y_high), size.height - BOTTOM, TOP),
        size.width,
        size.height,
    )
    parts: list[Markup | None] = [frame(plot, x_label, y_format, whole_x=x_format is None, x_format=x_format)]
    parts += [_pale_bar(plot, x, y, y_format) for x, y in bars]
    if rule:
        parts.append(_rule(plot, *rule))
    parts += [_band(plot, one) for one in series]
    parts += [_line(plot, one, y_format) for one in series]
    parts.append(_end_labels(plot, series, y_format))
    return drawing(size.width, size.height, title, *parts, kind=size.kind)


def _rule(plot: Plot, x: float, label: str) -> Markup:
    at = plot.x(x)
    # On the right half the label would run into the names of the lines.
    left = at > (plot.x.start + plot.x.end) / 2
    return join(
        [
            tag("line", x1=at, x2=at, y1=plot.y.end, y2=plot.y.start, class_="rule"),
            text(
                at + (-5 if left else 5), plot.y.start - 7, label, text_anchor="end" if left else "start", class_="tick"
            ),
        ]
    )


def _pale_bar(plot: Plot, x: float, y: float, y_format: Format) -> Markup:
    top = plot.y(y)
    shape = {"x": plot.x(x) - PALE_BAR_WIDTH / 2, "y": top, "width": PALE_BAR_WIDTH}
    height = max(round(plot.y.start - top, 2), 1)
    return tag("rect", tag("title", f"{y_format(y)} at {x:g}"), **shape, height=height, class_="fill tone-faint")


def _band(plot: Plot, series: Series) -> Markup | None:
    if not series.intervals:
        return None
    xs = [plot.x(x) for x, _ in series.points]
    outline = [(x, plot.y(low)) for x, (low, _) in zip(xs, series.intervals)]
    outline += [(x, plot.y(high)) for x, (_, high) in reversed(list(zip(xs, series.intervals)))]
    whiskers = [
        tag("line", x1=x, x2=x, y1=plot.y(low), y2=plot.y(high), class_="whisker")
        for x, (low, high) in zip(xs, series.intervals)
    ]
    return tag("g", tag("polygon", points=_points(outline), class_="band"), *whiskers, class_=f"tone-{series.tone}")


def _line(plot: Plot, series: Series, y_format: Format) -> Markup:
    at = [(plot.x(x), plot.y(y)) for x, y in series.points]
    radius = 2.4 if len(at) <= MAX_MARKED_POINTS else 1
    markers = [
        tag("circle", tag("title", f"{series.label}: {y_format(y)} at {x:g}"), cx=cx, cy=cy, r=radius, class_="marker")
        for (cx, cy), (x, y) in zip(at, series.points)
    ]
    line = tag("polyline", points=_points(at), class_=f"line {series.stroke}")
    return tag("g", line, *markers, class_=f"tone-{series.tone}")


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in pairs)


def _end_labels(plot: Plot, series: Sequence[Series], y_format: Format) -> Markup:
    ends = [plot.y(one.points[-1][1]) for one in series]
    parts: list[Markup | None] = []
    for one, end, height in zip(series, ends, spread(ends, 32, plot.y.end + 6, plot.y.start - 16)):
        x = plot.x.end + 10
        last_x = plot.x(one.points[-1][0])
        parts.append(tag("polyline", points=_points([(last_x + 4, end), (x + 2, height)]), class_="leader"))
        parts.append(tag("circle", cx=x + 6, cy=height, r=4, class_=f"marker tone-{one.tone}"))
        value = y_format(one.points[-1][1])
        parts.append(text(x + 14, height + 4, one.label or value, class_="name"))
        parts.append(text(x + 14, height + 17, value, class_="tick") if one.label else None)
    return tag("g", *parts)


def stacked_bars(
    positions: Sequence[float],
    parts: Sequence[tuple[str, str, Sequence[float]]],
    title: str,
    x_label: str,
    y_format: Format = compact,
) -> Markup:
    """One bar for each position, made of `parts` (label, tone, a value >= 0 for each position), with a legend."""
    totals = [sum(values[i] for _, _, values in parts) for i in range(len(positions))]
    step = min((b - a for a, b in itertools.pairwise(positions)), default=1.0)
    plot = Plot(
        Scale(min(positions) - step / 2, max(positions) + step / 2, LEFT, WIDE.width - 10),
        Scale(*span(totals, low=0.0), WIDE.height - BOTTOM, TOP),
        WIDE.width,
        WIDE.height,
    )
    width = max(1.0, min(34.0, 0.74 * (plot.x(min(positions) + step) - plot.x(min(positions)))))
    bars = []
    for i, position in enumerate(positions):
        below = 0.0
        for label, tone, values in parts:
            low, high = plot.y(below), plot.y(below + values[i])
            below += values[i]
            note = tag("title", f"{label}: {y_format(values[i])} at {position:g}")
            x, height = round(plot.x(position) - width / 2, 2), round(low - high, 2)
            shape = {"x": x, "y": high, "width": round(width, 2), "height": height}
            bars.append(tag("rect", note, **shape, class_=f"fill tone-{tone}") if height else None)
    chart = drawing(plot.width, plot.height, title, frame(plot, x_label, y_format), *bars, kind=WIDE.kind)
    return join([legend([(label, tone) for label, tone, _ in parts]), chart])


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Names (label, tone) with the colour that they have in the chart."""
    items = (tag("span", tag("i", class_=f"swatch tone-{tone}"), label) for label, tone in entries)
    return tag("p", *items, class_="legend")


def interval_chart(intervals: Sequence[Interval], title: str) -> Markup:
    """A dot with its interval for each row, on an axis from 0 to 100%."""
    width, row, top = WIDE.width, 34.0, 4.0
    height = top + row * len(intervals) + 22
    scale = Scale(0.0, 1.0, 64.0, width - 20)
    bottom = height - 22
    parts = []
    for value in ticks(0.0, 1.0, 5):
        x = scale(value)
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="gridline"))
        parts.append(text(x, height - 6, percent(value, 0), text_anchor="middle", class_="tick"))
    for i, one in enumerate(intervals):
        y, low, high = top + row * (i + 0.5), scale(one.low), scale(one.high)
        bar = {"x": low, "y": y - 7, "width": round(high - low, 2), "height": 14, "rx": 7}
        dot = tag("circle", tag("title", f"{one.label}: {percent(one.value)}"), cx=scale(one.value), cy=y, r=6)
        parts.append(tag("g", tag("rect", **bar, class_="band"), dot, class_=f"dot tone-{one.tone}"))
        parts.append(text(0, y + 4, one.label, class_="name"))
    return drawing(width, height, title, *parts, kind=WIDE.kind)


def meter(share: float, tone: str, bound: float | None = None) -> Markup:
    """A bar filled to `share` of its length, with a mark at `bound` (both 0 to 1, clipped)."""
    mark = None if bound is None else tag("i", class_="bound", style=f"left:{_clipped(bound):.2f}%")
    fill = tag("i", class_=f"fill-bar tone-{tone}", style=f"width:{_clipped(share):.2f}%")
    return tag("span", fill, mark, class_="meter")


def _clipped(share: float) -> float:
    return 100 * min(1.0, max(0.0, share))
