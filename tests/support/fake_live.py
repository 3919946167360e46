"""What a run leaves for whoever watches it: traces, status and events, drawn from a seed."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np

from cluster.recipes.recipe_table import stage_labels
from wmpo_ray.config.run import Config

STAGES = stage_labels(Config())
EPOCH = 1_732_250_000.0


class Clock:
    """The time of one worker, and the call that it is in."""

    def __init__(self, worker: str, role: str, node: str, pid: int, now: float, rng: np.random.Generator):
        self.now, self._rng = now, rng
        self._about = {"worker": worker, "role": role, "node": node, "pid": pid}
        self._spans: list[list[Any]] = []

    def spend(self, name: str, seconds: float) -> None:
        took = float(seconds * self._rng.uniform(0.8, 1.2))
        self._spans.append([name, round(self.now, 6), round(took, 6)])
        self.now += took

    def call(self, name: str, update: int, groups: list[list[int]], version: int, start: float) -> dict[str, Any]:
        """The line of a call that began at `start`, with everything spent since the last one."""
        spans, self._spans = self._spans, []
        about = {"call": name, "update": update, "groups": groups, "version": version}
        return {**self._about, **about, "start": start, "seconds": round(self.now - start, 6), "spans": spans}


def fake_trace(update: int = 3, num_workers: int = 4, num_requests: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """The calls of one update, in the order of their ends: imagination, scores behind it, then the learner."""
    rng = np.random.default_rng(seed)
    begin = EPOCH + 60.0 * update
    workers = [
        Clock(f"imagination-{i}", "imagination", "ab" * 14 if i % 2 else "cd" * 14, 100 + i, begin, rng)
        for i in range(num_workers)
    ]
    reward = Clock("reward-0", "reward", "ab" * 14, 90, begin, rng)
    lines = []
    for worker in workers:
        worker.spend("load", 0.15)
        lines.append(worker.call("load_weights", update, [], update, begin))
    for request in range(num_requests):
        worker = min(workers, key=lambda one: one.now)
        worker.now += 0.02
        start, groups = worker.now, [[update, 2 * request], [update, 2 * request + 1]]
        for _ in range(8):
            worker.spend("policy", 0.03)
            worker.spend("denoise", 0.3)
            worker.spend("decode", 0.05)
        worker.spend("spool", 0.04)
        lines.append(worker.call("imagine", update, groups, update, start))
        reward.now = start = max(reward.now, worker.now) + 0.01
        reward.spend("score", 0.4)
        reward.spend("verify", 0.5)
        lines.append(reward.call("score", update, groups, update, start))
    learner = Clock("learner-0", "learner", "ab" * 14, 80, reward.now + 0.1, rng)
    start = learner.now
    for name, seconds in (("batch", 0.2), *[("step", 0.5)] * 4, ("checkpoint", 0.3), ("encode", 0.1)):
        learner.spend(name, seconds)
    lines.append(learner.call("update", update, [[update, 0]], update, start))
    environment = Clock("environment-0", "environment", "ab" * 14, 70, learner.now, rng)
    start = environment.now
    environment.now += 1.7
    lines.append(environment.call("evaluate", update, [], update + 1, start))
    return sorted(lines, key=lambda line: line["start"] + line["seconds"])


def write_trace(folder: Path, lines: list[dict[str, Any]], update: int = 3) -> Path:
    path = folder / "traces" / f"update-{update:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def fake_status(now: float | None = None, stage: str = "optimize", num_workers: int = 4) -> dict[str, Any]:
    """What a run of this very process would write now."""
    now = time.time() if now is None else now
    status: dict[str, Any] = {
        "time": now,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "job": "",
        "state": "running",
        "stage": stage,
        "stages_done": list(STAGES[: STAGES.index(stage)]),
        "stages": list(STAGES),
        "progress": {"done": 7, "total": 15, "metrics": {"loss": 0.2691}},
        "faults": [
            {"time": now - 95, "event": "worker.lost", "text": "imagination-1 was lost: killed by signal 9"},
            {"time": now - 80, "event": "worker.back", "text": "imagination-1 serves again after 14.8 s"},
        ],
        "dashboard": "http://127.0.0.1:8265",
    }
    return status | optimization_status(now, num_workers) if stage == "optimize" else status


def optimization_status(now: float, num_workers: int) -> dict[str, Any]:
    """What stands in the status during the main loop alone."""
    doing = ("imagine", "imagine", "load_weights", "")
    workers = [("imagination", i, doing[i % 4]) for i in range(num_workers)]
    workers += [("reward", 0, "score"), ("learner", 0, ""), ("environment", 0, "evaluate")]
    return {
        "update": 7,
        "num_updates": 15,
        "version": 7,
        "offered": 7,
        "imagined_success": 0.642,
        "real_success": 0.555,
        "real_low": 0.47,
        "real_high": 0.64,
        "queue": {
            "in_flight": 5,
            "admitted": 27,
            "needed": 40,
            "verdicts": {"admit": 307, "uniform": 61, "surplus": 9},
        },
        "rates": {"frames_per_s": 812.4, "groups_per_s": 1.93, "updates_per_h": 190.2},
        "workers": [
            {
                "name": f"{role}-{i}",
                "role": role,
                "phase": "building" if (role, i) == ("imagination", 3) else "ready",
                "doing": name,
                "since": now - 2.5 - i,
                "weights": "1a2021c83f24d208",
                "memory_bytes": 612_000_000 + 1_000_000 * i,
                "gpu_memory_bytes": 0,
                "losses": 1 if (role, i) == ("imagination", 1) else 0,
            }
            for role, i, name in workers
        ],
    }


def fake_events(now: float | None = None) -> list[dict[str, Any]]:
    now = time.time() if now is None else now
    return [
        {"time": now - 300, "level": "info", "event": "run.started", "text": "run demo"},
        {
            "time": now - 95,
            "level": "warning",
            "event": "worker.lost",
            "text": "imagination-1 was lost: killed",
            "n": 1,
        },
        {"time": now - 80, "level": "info", "event": "worker.back", "text": "imagination-1 serves again"},
    ]


def write_live(folder: Path, status: dict[str, Any] | None = None, num_workers: int = 4) -> Path:
    """Add `status.json`, `events.jsonl` and two traces to a run's folder; the newer one is unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps(fake_status() if status is None else status))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in fake_events()))
    write_trace(folder, fake_trace(3, num_workers), 3)
    write_trace(folder, [line for line in fake_trace(4, num_workers) if line["role"] != "learner"], 4)
    return folder
