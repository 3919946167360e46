"""Laws of scales, ticks and labels."""

from __future__ import annotations

import itertools

from hypothesis import assume, given
from hypothesis import strategies as st

from wmpo_ray.report.formats import compact, seconds
from wmpo_ray.report.svg import Scale, span, spread, ticks

VALUES = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(VALUES, min_size=1, max_size=20), st.sampled_from([None, 0.0]), st.sampled_from([None, 1.0]))
def test_an_axis_holds_its_values_and_is_never_empty(values: list[float], low: float | None, high: float | None):
    bottom, top = span(values, low, high)
    assert bottom < top and all(bottom <= value <= top for value in values)


@given(VALUES, st.floats(1e-3, 1e9), st.integers(2, 8), st.booleans())
def test_ticks_are_few_even_and_inside(low: float, width: float, count: int, whole: bool):
    assume(width > 1e-6 * abs(low))
    high = low + width
    found = ticks(low, high, count, whole)
    margin = 1e-6 * max(abs(low), abs(high), 1.0)
    assert len(found) <= count + 1 and found == sorted(set(found))
    assert all(low - margin <= value <= high + margin for value in found)
    assert not whole or all(value == int(value) for value in found)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=5))
def test_labels_keep_their_order_and_their_distance(heights: list[float]):
    placed = spread(heights, 30, 0, 200)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    assert all(placed[b] - placed[a] >= 30 - 1e-6 for a, b in itertools.pairwise(order))
    assert all(-1e-6 <= height <= 200 + 1e-6 for height in placed)


def test_a_scale_maps_ends_on_ends():
    scale = Scale(2.0, 4.0, 100.0, 20.0)
    assert (scale(2.0), scale(3.0), scale(4.0)) == (100.0, 60.0, 20.0)


def test_numbers_read_well():
    assert [seconds(x) for x in (0.04, 59.9, 61.3, 3599.6, 5400)] == [
        "0.0 s",
        "59.9 s",
        "1 min 01 s",
        "60 min 00 s",
        "1 h 30 min",
    ]
    assert [compact(x) for x in (0, 0.25, 15.0, 1234.0, 2e-6)] == ["0", "0.25", "15", "1,234", "2e-6"]
