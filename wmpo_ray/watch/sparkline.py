"""A curve in one line of text."""

from __future__ import annotations

from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int, low: float | None = None, high: float | None = None) -> str:
    """The last `width` values as blocks; the range is that of the values unless it is given."""
    values = list(values)[-width:] if width > 0 else []
    if not values:
        return ""
    bottom = min(values) if low is None else low
    top = max(values) if high is None else high
    if top <= bottom:
        return BLOCKS[0] * len(values)
    places = [(min(max(value, bottom), top) - bottom) / (top - bottom) for value in values]
    return "".join(BLOCKS[round(place * (len(BLOCKS) - 1))] for place in places)
