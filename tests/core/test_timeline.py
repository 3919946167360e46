"""Spans: what a call took, without changing what it does."""

from __future__ import annotations

import pickle
import threading
import time

import pytest

from wmpo_ray.core.timeline import count, record, span


def test_outermost_spans_add_up_to_no_more_than_the_time_that_passed():
    began = time.perf_counter()
    with record() as recording:
        for _ in range(3):
            with span("outer"):
                time.sleep(0.002)
                with span("inner"):
                    time.sleep(0.001)
        with span("other"):
            time.sleep(0.001)
    passed = time.perf_counter() - began
    seconds = recording.seconds()
    assert set(seconds) == {"outer", "other"} and sum(seconds.values()) <= passed
    assert seconds["outer"] >= 3 * 0.003
    for inner in (each for each in recording.spans if each.name == "inner"):
        assert any(
            outer.start <= inner.start and inner.start + inner.seconds <= outer.start + outer.seconds + 1e-3
            for outer in recording.spans
            if outer.name == "outer"
        )


def test_what_fails_is_recorded_and_raised():
    with record() as recording:
        with pytest.raises(ValueError, match="no"), span("failing"):
            raise ValueError("no")
        with span("after"):
            pass
    assert [(each.name, each.depth) for each in recording.spans] == [("failing", 0), ("after", 0)]


def test_nothing_is_kept_outside_of_a_recording_or_from_another_thread():
    with span("nobody listens"):
        count("bytes", 3)
    with record() as recording:
        other = threading.Thread(target=lambda: span("elsewhere").__enter__())
        other.start()
        other.join()
        with record() as inner:
            count("bytes", 5)
        count("bytes", 2)
        count("bytes", 1)
    assert recording.spans == [] and recording.counts == {"bytes": 3} and inner.counts == {"bytes": 5}


def test_a_recording_travels_between_processes():
    with record() as recording, span("policy"):
        count("bytes", 7)
    assert pickle.loads(pickle.dumps(recording)) == recording
