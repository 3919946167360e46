"""A trace follows the rules of its format, whatever the calls were like, and loses no time."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.support.fake_live import EPOCH, fake_trace, write_trace
from wmpo_ray.core.errors import UserError
from wmpo_ray.report.trace_data import (
    Phase,
    Trace,
    busy_shares,
    exclusive,
    nest,
    newest_trace,
    phase_seconds,
    read_trace,
)
from wmpo_ray.watch.trace import chrome_trace, find_trace, trace_tables, write_chrome_trace

MOMENTS = st.floats(0, 10, allow_nan=False)


def check_format(data: dict[str, Any]) -> None:
    """The rules of the trace-event format for the kinds of events that are used; raises AssertionError."""
    assert set(data) >= {"traceEvents", "displayTimeUnit"} and data["displayTimeUnit"] in ("ms", "ns")
    named: set[tuple[int, int]] = set()
    timed: list[int] = []
    flows: dict[int, dict[str, int]] = defaultdict(dict)
    threads: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in data["traceEvents"]:
        place = (event["pid"], event["tid"])
        assert type(event["pid"]) is int and type(event["tid"]) is int and isinstance(event["name"], str)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            named.add(place)
            continue
        assert event["ph"] in ("X", "s", "f") and place in named
        assert type(event["ts"]) is int and event["ts"] >= 0
        timed.append(event["ts"])
        if event["ph"] == "X":
            assert type(event["dur"]) is int and event["dur"] >= 0 and isinstance(event["args"], dict)
            threads[place].append((event["ts"], event["ts"] + event["dur"]))
        else:
            assert event["ph"] not in flows[event["id"]] and (event["ph"] == "s" or event["bp"] == "e")
            flows[event["id"]][event["ph"]] = event["ts"]
            assert any(begin <= event["ts"] <= end for begin, end in threads[place]), "an arrow that ends nowhere"
    assert timed == sorted(timed)
    assert all(set(ends) == {"s", "f"} and ends["s"] <= ends["f"] for ends in flows.values())
    for events in threads.values():
        open_: list[int] = []
        for begin, end in events:
            while open_ and open_[-1] <= begin:
                open_.pop()
            assert not open_ or end <= open_[-1], "events of one thread overlap without being nested"
            open_.append(end)


@pytest.mark.parametrize(("num_workers", "num_requests"), [(1, 1), (4, 12), (40, 60)])
def test_a_trace_follows_the_format(tmp_path: Path, num_workers: int, num_requests: int):
    path = write_trace(tmp_path, fake_trace(3, num_workers, num_requests))
    write_chrome_trace(read_trace(path), tmp_path / "out.json")
    data = json.loads((tmp_path / "out.json").read_text())
    check_format(data)
    calls = [event for event in data["traceEvents"] if event["ph"] == "X" and event["args"]]
    assert len(calls) == len(fake_trace(3, num_workers, num_requests))
    imagined = [event for event in calls if event["name"] == "imagine"]
    assert len(imagined) == num_requests and all(len(event["args"]["groups"]) == 2 for event in imagined)
    assert sum(event["ph"] == "f" for event in data["traceEvents"]) == num_requests
    threads = {e["args"]["name"] for e in data["traceEvents"] if e["name"] == "thread_name"}
    assert threads == {call["worker"] for call in fake_trace(3, num_workers, num_requests)}


def call(worker: str, start: float, seconds: float, spans: list[list[Any]], **others: Any) -> dict[str, Any]:
    groups = others.pop("groups", [])
    role = worker.partition("-")[0]
    about = {"worker": worker, "role": role, "node": "", "pid": 1, "call": "imagine", "update": 3, "version": 3}
    return {**about, "groups": groups, "start": EPOCH + start, "seconds": seconds, "spans": spans, **others}


@given(
    st.lists(
        st.builds(
            lambda worker, name, start, seconds, spans: call(
                f"imagination-{worker}",
                start,
                seconds,
                [["policy", EPOCH + at, took] for at, took in spans],
                call=name,
                groups=[[3, worker]],
                node=str(worker % 2),
            ),
            st.integers(0, 2),
            st.sampled_from(["imagine", "score", "update"]),
            MOMENTS,
            MOMENTS,
            st.lists(st.tuples(MOMENTS, MOMENTS), max_size=5),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_calls_and_spans_in_any_disorder_make_a_trace_that_follows_the_format(tmp_path_factory, lines):
    path = write_trace(tmp_path_factory.mktemp("trace"), lines)
    trace = read_trace(path)
    assert len(trace.calls) == len(lines)
    check_format(chrome_trace(trace))
    for one in trace.calls:
        pieces = exclusive(one)
        assert math.isclose(sum(piece.seconds for piece in pieces), one.seconds, abs_tol=1e-5)
        assert all(a.end == b.start for a, b in itertools.pairwise(pieces))
    assert all(0 <= share <= 1 + 1e-9 for share in busy_shares(trace).values())


def test_the_innermost_phase_counts_and_the_rest_is_the_calls_own():
    spans = [Phase("step", 1.0, 5.0), Phase("batch", 2.0, 3.0), Phase("late", 4.5, 5.2), Phase("outside", 8.0, 9.0)]
    nested = nest(spans, 0.0, 6.0)
    assert nested == [Phase("step", 1.0, 4.5), Phase("batch", 2.0, 3.0), Phase("late", 4.5, 5.2)]


def test_shares_are_those_of_the_calls(tmp_path: Path):
    lines = [
        call("imagination-0", 0, 4, [["policy", EPOCH, 1], ["denoise", EPOCH + 1, 2]]),
        call("imagination-1", 0, 1, []),
        call("learner-0", 4, 4, [["step", EPOCH + 4, 4]], call="update", role="learner"),
    ]
    trace = read_trace(write_trace(tmp_path, lines))
    assert phase_seconds(trace) == {
        "imagination": pytest.approx({"policy": 1, "denoise": 2, "other": 1, "imagine": 1}),
        "learner": pytest.approx({"step": 4}),
    }
    assert busy_shares(trace) == pytest.approx({"imagination-0": 0.5, "imagination-1": 0.125, "learner-0": 0.5})


def test_the_newest_complete_update_is_taken(tmp_path: Path):
    for update in (2, 3, 10):
        write_trace(tmp_path, fake_trace(update), update)
    write_trace(tmp_path, [line for line in fake_trace(11) if line["role"] != "learner"], 11)
    assert newest_trace(tmp_path).update == 10 and find_trace(tmp_path, 2).update == 2
    with pytest.raises(UserError, match="--update 4: .* 2, 3, 10, 11"):
        find_trace(tmp_path, 4)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[]",
        '{"worker": "a"}',
        '{"worker": "a", "call": "x", "start": -1, "seconds": 1}',
        '{"worker": "a", "call": "x", "start": 1, "seconds": NaN}',
        '{"worker": "a", "call": "x", "start": 1e400, "seconds": 1}',
        '{"worker": 5, "call": "x", "start": 1, "seconds": 1}',
        "[" * 100_000,
        '{"worker": "cut sho',
    ],
)
def test_a_damaged_line_costs_that_line_only(tmp_path: Path, line: str):
    path = write_trace(tmp_path, fake_trace())
    path.write_text(f"{line}\n" + path.read_text() + line)
    trace = read_trace(path)
    assert len(trace.calls) == len(fake_trace()) and trace.num_damaged == (2 if line else 0)


@pytest.mark.parametrize(
    "value", [None, "x", -1, [], {}, True, [[1]], [[1, 2, 3]], [["a", "b", "c"]], [["a", 1e400, 1]]]
)
def test_any_value_in_place_of_spans_and_ids_makes_a_trace(tmp_path: Path, value: object):
    odd = {key: value for key in ("spans", "groups", "update", "version", "pid", "node", "role")}
    trace = read_trace(write_trace(tmp_path, [call("imagination-0", 0, 1, []) | odd]))
    check_format(chrome_trace(trace))
    assert trace.calls[0].phases == ()


def test_what_cannot_be_traced_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        find_trace(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no traces/update"):
        find_trace(tmp_path)
    write_trace(tmp_path, [])
    with pytest.raises(UserError, match="nothing can be read"):
        find_trace(tmp_path)
    with pytest.raises(UserError, match="--out .* does not exist"):
        write_chrome_trace(Trace(0, ()), tmp_path / "nowhere" / "out.json")


def test_the_tables_name_every_role_and_worker(tmp_path: Path):
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=100, file=nowhere)
        console.print(trace_tables(read_trace(write_trace(tmp_path, fake_trace()))))
        text = console.export_text()
    assert all(
        word in text for word in ("imagination-3", "learner-0", "denoise", "verify", "checkpoint", "environment")
    )
