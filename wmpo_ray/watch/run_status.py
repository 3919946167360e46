"""What a run does or how it ended, from its folder alone: nothing is asked of Ray, and nothing in the folder is trusted."""

from __future__ import annotations

import enum
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import json_clean
from wmpo_ray.core.untrusted import parse_json, read_json
from wmpo_ray.report.recipe_view import newest_round, num_rounds, split_label
from wmpo_ray.report.run_data import RunData, mapping, number, read_run_metrics
from wmpo_ray.runs.summary_file import SUMMARY

STATUS, EVENTS, CONFIG, LEDGER = "status.json", "events.jsonl", "config.json", "ledger.jsonl"
RATES = ("imagined/success_rate", "rollout/success_rate", "real/success_rate")
FRESH_S = 4.0  # a running run writes once a second
SILENT_S = 20.0  # after this long it counts as dead, if its process cannot be checked
TAIL_BYTES = 64 << 10
MAX_STATUS_BYTES = 16 << 20


class Condition(enum.Enum):
    """The value is the word for it."""

    RUNNING = "running"
    SILENT = "silent"  # its process is there and writes nothing
    DONE = "done"
    FAILED = "failed"
    PREEMPTED = "preempted"
    KILLED = "killed"  # its status is "running" but its process is gone
    STOPPED = "stopped"  # unfinished, and nothing says why
    UNREADABLE = "unreadable"

    @property
    def is_over(self) -> bool:
        return self not in (Condition.RUNNING, Condition.SILENT)


@dataclass
class RunStatus:
    """A snapshot of a run."""

    folder: Path
    condition: Condition
    now: float  # time of the snapshot, seconds since the epoch
    run: RunData  # its summary and metrics
    status: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    last_sign: float | None = None  # of life, seconds since the epoch

    @property
    def stages_done(self) -> list[str]:
        told = self.status.get("stages_done")
        done = {one_line(name) for name in told} if isinstance(told, list) else set()
        recorded, begun = mapping(self.run.summary, "stages"), mapping(self.run.summary, "begun")
        return [name for name in self.stages if name in done or (name in recorded and name not in begun)]

    @property
    def stages(self) -> list[str]:
        stages = self.status.get("stages")
        return (
            [one_line(name) for name in stages]
            if isinstance(stages, list) and stages
            else [one_line(name) for name in self.run.stages]
        )

    @property
    def stage(self) -> str:
        """The one that runs, in which the run stopped, or which is next; "" once all are done."""
        stage = self.status.get("stage")
        if isinstance(stage, str) and stage and self.condition is not Condition.DONE:
            return one_line(stage)
        return next((name for name in self.stages if name not in self.stages_done), "")

    @property
    def round(self) -> int:
        """The round that the run is in; the last one once all are done."""
        return split_label(self.stage)[1] if self.stage else num_rounds(self.run)

    @property
    def current(self) -> RunData:
        """The newest round that has logged an update."""
        return newest_round(self.run)

    @property
    def faults(self) -> list[dict[str, Any]]:
        faults = self.status.get("faults")
        if not isinstance(faults, list) or not faults:
            faults = [event for event in read_events(self.folder) if event.get("level") in ("warning", "error")]
        return [fault for fault in faults if isinstance(fault, dict)]

    def to_json(self) -> dict[str, Any]:
        """What is known, in JSON's types; the curves are lists of [update, value] of the newest round."""
        curves = {key: self.current.curve(key) for key in RATES}
        return json_clean(
            {
                "folder": str(self.folder),
                "name": self.run.name,
                "condition": self.condition.value,
                "sentence": self.sentence(),
                "stage": self.stage,
                "stages_done": self.stages_done,
                "round": self.round,
                "rounds": num_rounds(self.run),
                "started": self.started,
                "silence_s": None if self.last_sign is None else max(0.0, self.now - self.last_sign),
                "curves": {key: [list(point) for point in curve] for key, curve in curves.items()},
                "result": self.run.summary.get("result"),
                "faults": self.faults,
                "status": self.status,
                "notes": self.run.notes,
            }
        )

    def sentence(self) -> str:
        """The state of the run, and what to do if it has stopped."""
        ago = "" if self.last_sign is None else f": last heard of {age(self.now - self.last_sign)} ago"
        resume = f"`wmpo run ... --out {self.folder} --resume` goes on"
        where = f" in stage {self._stage_and_round()}" if self.stage else ""
        sentences = {
            Condition.RUNNING: f"running{where}",
            Condition.SILENT: f"its process is there but says nothing{ago}; it may be stopped or out of CPU",
            Condition.DONE: f"done as far as it was asked to; stage {self._stage_and_round()} is next"
            if self.stage
            else "done",
            Condition.FAILED: f"failed{where}; the error stands below and in {EVENTS}; {resume}",
            Condition.PREEMPTED: f"preempted{where}; {resume}",
            Condition.KILLED: f"not running any more{ago}; {resume}",
            Condition.STOPPED: f"stopped{where}{ago}; {resume}",
            Condition.UNREADABLE: f"{SUMMARY} is damaged, and nothing else says how the run stands",
        }
        return sentences[self.condition]

    def _stage_and_round(self) -> str:
        stage, round = split_label(self.stage)
        rounds = num_rounds(self.run)
        return f"{stage} of round {round} of {rounds}" if rounds > 1 else self.stage


def read_status(folder: Path, now: float | None = None) -> RunStatus:
    """Read the status of a run. Raises UserError if `folder` is not a run folder."""
    now = time.time() if now is None else now
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run")
    if not is_run(folder):
        raise UserError(f"{folder} is not the folder of a run: it holds neither {CONFIG} nor {STATUS}")
    run = read_run_metrics(folder)
    status, damage = read_object(folder / STATUS)
    if damage:
        run.notes.append(damage)
    return RunStatus(
        folder=folder,
        condition=_condition(folder, run, status, now),
        now=now,
        run=run,
        status=status,
        started=_started(folder),
        last_sign=_last_sign(folder, status),
    )


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, STATUS))


def _condition(folder: Path, run: RunData, status: dict[str, Any], now: float) -> Condition:
    told = {
        "done": Condition.DONE,
        "failed": Condition.FAILED,
        "preempted": Condition.PREEMPTED,
        "stopped": Condition.STOPPED,
    }
    state = status.get("state")
    if state == "running":
        return _is_anyone_there(status, now)
    if isinstance(state, str) and state in told:
        return told[state]
    if not run.summary and run.notes:
        return Condition.UNREADABLE
    done = mapping(run.summary, "stages")
    # Without a recipe in its summary, a run is of an earlier version: it ended with a result.
    is_over = all(name in done for name in run.stages) and bool(mapping(run.summary, "result"))
    return Condition.DONE if is_over else Condition.STOPPED


def _is_anyone_there(status: dict[str, Any], now: float) -> Condition:
    told, pid = number(status, "time"), number(status, "pid")
    silence = now - told if told is not None else float("inf")
    # First: in another container of the same node the numbers of processes mean nothing.
    if silence <= FRESH_S:
        return Condition.RUNNING
    if status.get("host") == socket.gethostname() and pid is not None and not _is_alive(int(pid)):
        return Condition.KILLED
    if silence <= SILENT_S:
        return Condition.RUNNING
    return Condition.SILENT if status.get("host") == socket.gethostname() and pid else Condition.KILLED


def _is_alive(pid: int) -> bool:
    if not 0 < pid < 1 << 31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_object(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object, and what is wrong with the file ("" where nothing is, and where it is not there)."""
    if not path.exists():
        return {}, ""
    try:
        data = read_json(path, MAX_STATUS_BYTES)
    except UserError as error:
        return {}, f"{error}."
    return (data, "") if isinstance(data, dict) else ({}, f"{path.name} holds no JSON object.")


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The last events of a run, those in the last TAIL_BYTES of its file; damaged lines are left out."""
    path = folder / EVENTS
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return [event for event in map(_event, file.read().splitlines()) if event]


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = parse_json(line, EVENTS)
    except UserError:
        return {}
    return event if isinstance(event, dict) else {}


def _started(folder: Path) -> float | None:
    """When the run first took hold of its folder: the lock is opened then and never written to."""
    times = [path.stat().st_mtime for name in (".lock", CONFIG) if (path := folder / name).is_file()]
    if (folder / EVENTS).is_file():
        with open(folder / EVENTS, "rb") as file:
            first = number(_event(file.readline(TAIL_BYTES)), "time")
        times += [] if first is None else [first]
    return min(times, default=None)


def _last_sign(folder: Path, status: dict[str, Any]) -> float | None:
    told = number(status, "time")
    if told is not None:
        return told
    names = (STATUS, EVENTS, SUMMARY, LEDGER, "metrics.jsonl")
    return max((path.stat().st_mtime for name in names if (path := folder / name).is_file()), default=None)


def one_line(value: Any) -> str:
    """The first line of a text from a file, "" for anything else; no control character of it reaches a terminal."""
    # "?" for the bytes of names that are not UTF-8
    lines = value.encode(errors="replace").decode().splitlines() if isinstance(value, str) else []
    return "".join(letter for letter in lines[0] if letter.isprintable()) if lines else ""


def age(value: float) -> str:
    """Seconds as people say them when it does not matter much; a clock that is ahead counts as now."""
    value = max(0.0, value)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if value >= unit:
            return f"{value / unit:.0f} {name}"
    return f"{value:.0f} s"
