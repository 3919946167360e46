"""The demo as a user runs it, on Ray and all cores: its seconds, memory and result."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from benchmarks.demo import run_demo
from benchmarks.evidence import cells
from benchmarks.results_file import current_commit, machine
from wmpo_ray.core.files import atomic_write

NAME = "demo-time"


def path_of_seed(seed: int) -> Path:
    return cells.CELLS / f"{NAME}-s{seed}.json"


def measure(seed: int, runs: Path) -> Path:
    """Run the demo from nothing and write its file."""
    summary = run_demo("demo", seed, runs / f"{NAME}-s{seed}", [], keep=False, force=False)
    content = {
        "command": f"python -m wmpo_ray run demo --set seed={seed}",
        "commit": current_commit(),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "seconds": summary["wall_s"],
        "peak_memory_gb": summary["peak_memory_gb"],
        "result": summary["result"],
        "stage_seconds": {name: stage["seconds"] for name, stage in summary["stages"].items()},
    }
    cells.CELLS.mkdir(parents=True, exist_ok=True)
    atomic_write(path_of_seed(seed), json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path_of_seed(seed)


def figures() -> dict[str, dict[str, Any]]:
    """The slowest of the seeds that were timed; nothing if none was."""
    found = [json.loads(path.read_text()) for path in sorted(cells.CELLS.glob(f"{NAME}-s*.json"))]
    if not found:
        return {}
    seconds, memory = ([each[key] for each in found] for key in ("seconds", "peak_memory_gb"))
    return {
        "demo_seconds": {"value": max(seconds), "unit": "s", "seeds": seconds},
        "demo_peak_memory_gb": {"value": max(memory), "unit": "GB", "seeds": memory},
    }
