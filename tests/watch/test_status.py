"""What is said of a run follows from its folder: alive, ended, killed, damaged."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support.fake_live import fake_status, write_live
from tests.watch.conftest import write_run
from wmpo_ray.core.errors import UserError
from wmpo_ray.watch.run_status import Condition, RunStatus, read_status
from wmpo_ray.watch.sparkline import BLOCKS, sparkline
from wmpo_ray.watch.status_view import frame, watch


def shown(status: RunStatus, width: int = 120, height: int | None = None) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True)
        console.print(frame(status, height))
        return console.export_text()


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_running_run_shows_what_it_does(running: Path):
    status = read_status(running)
    text = shown(status)
    assert status.condition is Condition.RUNNING
    for word in ("running in stage optimize", "7 of 15", "64.2%", "55.5% [47%, 64%]", "27 of 40", "307", "812.4"):
        assert word in text
    for word in ("imagination-1", "load_weights", "building", "1a2021c8", "killed by signal 9", "2 min ago"):
        assert word in text
    assert "--resume" not in text and any(block in text for block in BLOCKS[2:])


@pytest.mark.parametrize(
    ("state", "stage", "condition", "words"),
    [
        ("done", "", Condition.DONE, "done"),
        ("failed", "gate", Condition.FAILED, "failed in stage gate"),
        ("preempted", "optimize", Condition.PREEMPTED, "preempted in stage optimize"),
    ],
)
def test_how_a_run_ended_is_said(running: Path, state: str, stage: str, condition: Condition, words: str):
    write_live(running, fake_status(time.time() - 500) | {"state": state, "stage": stage})
    status = read_status(running)
    assert status.condition is condition and words in shown(status)
    assert ("--resume" in shown(status)) == (condition is not Condition.DONE)


@pytest.mark.parametrize(
    ("silence_s", "host", "pid", "condition"),
    [
        (1, "here", "dead", Condition.RUNNING),  # another container of this node has other numbers
        (6, "here", "dead", Condition.KILLED),
        (6, "here", "alive", Condition.RUNNING),
        (200, "here", "alive", Condition.SILENT),
        (200, "here", "dead", Condition.KILLED),
        (10, "elsewhere", "dead", Condition.RUNNING),
        (200, "elsewhere", "alive", Condition.KILLED),
        (-50, "elsewhere", "alive", Condition.RUNNING),  # its clock is ahead
        (200, "here", -1, Condition.KILLED),
        (200, "here", 1 << 40, Condition.KILLED),
    ],
)
def test_a_run_that_says_running_is_believed_only_while_it_lives(running, silence_s, host, pid, condition):
    status = fake_status(time.time() - silence_s)
    status["pid"] = {"alive": os.getpid(), "dead": dead_process()}.get(pid, pid)
    if host != "here":
        status["host"] = host
    write_live(running, status)
    seen = read_status(running)
    assert seen.condition is condition
    if condition is Condition.KILLED:
        text = shown(seen)
        assert "not running any more" in text and "--resume" in text and "imagination-0" not in text
        assert silence_s < 100 or "last heard of 3 min ago" in text


def test_a_run_without_a_status_is_read_from_its_summary(tmp_path: Path):
    folder = write_run(tmp_path / "old")
    assert read_status(folder).condition is Condition.DONE
    summary = json.loads((folder / "summary.json").read_text())
    summary["stages"] = dict(list(summary["stages"].items())[:6])
    (folder / "summary.json").write_text(json.dumps(summary))
    status = read_status(folder)
    assert status.condition is Condition.STOPPED and "stopped in stage optimize" in shown(status)


@pytest.mark.parametrize("value", [None, "x", -1, 0, [], {}, True, 1e308, "\x1b[31mred", [None], [[]], 10**400])
def test_any_value_in_place_of_what_a_status_says_makes_a_picture(running: Path, value: Any):
    def replaced(data: Any) -> Any:
        if isinstance(data, dict):
            return {key: replaced(entry) for key, entry in data.items()}
        return [replaced(entry) for entry in data] if isinstance(data, list) else value

    flat = {key: value for key in fake_status()}
    for status in (replaced(fake_status()), flat, replaced(fake_status()) | {"time": time.time(), "state": "running"}):
        (running / "status.json").write_text(json.dumps(status))
        seen = read_status(running)
        json.dumps(seen.to_json(), allow_nan=False)
        with open(os.devnull, "w") as nowhere:
            console = Console(record=True, width=100, file=nowhere, no_color=True)
            console.print(frame(seen, 30))
            assert "\x1b" not in console.export_text()


@pytest.mark.parametrize("name", ["status.json", "events.jsonl", "summary.json", "metrics.jsonl", "config.json"])
@pytest.mark.parametrize("damage", [b"", b'{"half', b"\xff\xfe\x00", b"[" * 100_000, b"[1, 2]"])
def test_a_damaged_file_costs_only_what_stands_in_it(running: Path, name: str, damage: bytes):
    (running / name).write_bytes(damage)
    assert "demo" in shown(read_status(running)) or name == "summary.json"


def test_a_folder_that_is_no_run_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        read_status(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_status(tmp_path / "nowhere")


def test_many_workers_fit_into_the_terminal_and_what_is_amiss_comes_first(running: Path):
    write_live(running, fake_status(num_workers=256))
    text = shown(read_status(running), height=40)
    assert len(text.splitlines()) <= 40
    assert text.index("building") < text.index("imagination-0") and "more" in text


def test_watching_ends_with_the_run(running: Path):
    naps: list[float] = []

    def wait(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            write_live(running, fake_status() | {"state": "done", "stage": ""})

    with open(os.devnull, "w") as nowhere:
        last = watch(Console(file=nowhere, force_terminal=True), lambda: read_status(running), wait)
    assert last.condition is Condition.DONE and naps == [0.5, 0.5, 0.5]


def test_a_sparkline_follows_its_values():
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█" and sparkline([3.0, 3.0], 5) == "▁▁"
    assert sparkline(list(range(100)), 4, 0.0, 99.0) == "████" and sparkline([], 5) == ""
    assert sparkline([-5.0, 5.0], 5, 0.0, 1.0) == "▁█"
