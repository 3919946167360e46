"""The picture of an update shows as much work as there was, and stays small however many workers there are."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.support.fake_live import EPOCH, fake_trace, write_trace
from tests.support.report_page import HOSTILE, Page
from wmpo_ray.report.page import document
from wmpo_ray.report.style import STYLE
from wmpo_ray.report.timeline_section import MAX_RECTANGLES, MAX_ROWS, PHASES, pieces, timeline_section, tone
from wmpo_ray.report.trace_data import Trace, busy_shares, by_worker, read_trace


def trace_of(folder: Path, lines: list[dict]) -> Trace:
    return read_trace(write_trace(folder, lines))


def rectangles(page: Page) -> list[dict[str, str | None]]:
    return [rect for rect in page.all("rect") if "tone-" in (rect.get("class") or "")]


@pytest.mark.parametrize(("num_workers", "num_requests"), [(2, 4), (39, 200), (256, 1000)])
def test_the_picture_is_bounded_and_says_what_it_leaves_out(tmp_path: Path, num_workers: int, num_requests: int):
    trace = trace_of(tmp_path, fake_trace(3, num_workers, num_requests))
    page = Page(document("timeline", timeline_section(trace)))
    assert 0 < len(rectangles(page)) <= MAX_RECTANGLES
    shown = {worker for worker in by_worker(trace) if worker in page.text.split("Where each role")[0]}
    assert {"reward-0", "learner-0", "environment-0"} <= shown
    assert f"on {num_workers + 3} workers" in page.text
    assert (f"{MAX_ROWS} of them are shown" in page.text) == (num_workers + 3 > MAX_ROWS)


def test_what_is_drawn_lasts_as_long_as_the_work(tmp_path: Path):
    trace = trace_of(tmp_path, fake_trace(3, 4, 40))
    whole = trace.end - trace.start
    busy = busy_shares(trace)
    for worker, row in pieces(trace, by_worker(trace)).items():
        assert sum(piece.end - piece.start for piece in row) == pytest.approx(whole * busy[worker], abs=whole / 400)
        assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(row))


def test_calls_shorter_than_a_column_neither_vanish_nor_grow(tmp_path: Path):
    base = fake_trace(3, 1, 1)[0] | {"spans": []}
    many = [base | {"worker": "reward-0", "start": EPOCH + 0.05 * i, "seconds": 0.01} for i in range(2000)]
    once = [base | {"worker": "reward-1", "start": EPOCH + 50, "seconds": 0.001}]
    row = pieces(trace := trace_of(tmp_path, many + once), by_worker(trace))
    assert sum(piece.end - piece.start for piece in row["reward-0"]) == pytest.approx(0.2 * 100, rel=0.02)
    assert len(row["reward-1"]) == 1


def test_every_phase_has_a_colour_in_both_themes():
    for phase in PHASES:
        assert f".tone-{tone(phase)} {{ --tone: var(--{phase}); }}" in STYLE
        assert len(re.findall(rf"--{phase}: #", STYLE)) == 2
    assert tone("unheard of") == "faint"


def test_names_from_a_trace_are_text_and_nothing_else(tmp_path: Path):
    lines = [line | {"worker": HOSTILE, "role": HOSTILE, "call": HOSTILE, "node": HOSTILE} for line in fake_trace()]
    page = Page(document("timeline", timeline_section(trace_of(tmp_path, lines))))
    assert not page.all("script") and not page.all("img")


def test_without_a_trace_the_section_says_so(tmp_path: Path):
    instant = [fake_trace()[0] | {"seconds": 0.0, "spans": []}]
    for trace in (None, Trace(3, ()), trace_of(tmp_path, instant)):
        assert "traces holds no update" in timeline_section(trace)


def test_damage_and_an_unfinished_update_are_said(tmp_path: Path):
    path = write_trace(tmp_path, [line for line in fake_trace() if line["role"] != "learner"])
    path.write_text(path.read_text() + '{"worker": "cut')
    text = timeline_section(read_trace(path))
    assert "left out: 1." in text and "has not finished it" in text
