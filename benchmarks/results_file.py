"""Where measured figures are kept: one JSON file for each benchmark, with the command, commit and machine behind it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

RESULTS_DIR = Path(__file__).parent / "results"


def write_results(name: str, figures: dict[str, dict[str, Any]], command: str, commit: str | None = None) -> Path:
    """Write `benchmarks/results/NAME.json` and return its path; `commit` is the one measured, if not the current one.

    `figures` maps a name to `{"value", "unit"}` and optionally `"interval"` [low, high] and `"seeds"`; raises
    ValueError where one of the two is missing.
    """
    for key, figure in figures.items():
        missing = {"value", "unit"} - figure.keys()
        if missing:
            raise ValueError(f"figure {key!r} has no {min(missing)!r}")
    content = {
        "command": command,
        "commit": commit or current_commit(),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "figures": figures,
    }
    RESULTS_DIR.mkdir(exist_ok=True)
    path = RESULTS_DIR / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def merge_results(name: str, part: str, figures: dict[str, dict[str, Any]], command: str) -> Path:
    """Write figures `part/KEY` into `benchmarks/results/NAME.json` beside those of the other parts; returns its path.

    Each part keeps the command, commit, date and machine that it was measured with; the file's own are the last ones.
    """
    path = RESULTS_DIR / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: figure for key, figure in before.get("figures", {}).items() if not key.startswith(f"{part}/")}
    write_results(name, kept | {f"{part}/{key}": figure for key, figure in figures.items()}, command)
    content = json.loads(path.read_text())
    own = {key: content[key] for key in ("command", "commit", "date", "machine")}
    content["parts"] = {**before.get("parts", {}), part: own}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def update_results(
    name: str, prefixes: tuple[str, ...], figures: dict[str, dict[str, Any]], command: str, commit: str | None = None
) -> Path:
    """Write the figures of `benchmarks/results/NAME.json` whose names begin so, and keep the others; returns its path.

    Those written say which command and commit they are from, `commit` if it is not the current one: the file's own are
    those of the others.
    """
    path = RESULTS_DIR / f"{name}.json"
    if not path.exists():
        return write_results(name, figures, command, commit)
    content = json.loads(path.read_text())
    own = {"command": command, "commit": commit or current_commit(), "date": datetime.date.today().isoformat()}
    others = {key: figure for key, figure in content["figures"].items() if not key.startswith(prefixes)}
    content["figures"] = others | {key: figure | own for key, figure in figures.items()}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def compact_json(content: Any) -> str:
    """JSON that is read line by line: a key on each, and a list of plain values on one."""
    text = json.dumps(content, indent=1, allow_nan=False)
    on_one_line = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
    return on_one_line + "\n"


def current_commit() -> str:
    """Hash of the checked-out commit, with `-dirty` if tracked files differ from it: others than results and pictures."""
    at = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, **at).stdout.strip()
        others = [":/", ":(top,exclude)benchmarks/results", ":(top,exclude)docs"]
        differs = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *others], check=False, **at).returncode
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if differs else commit


def machine() -> str:
    """Processor, cores and memory, and the GPU if there is one."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB"
    return f"{torch.cuda.get_device_name()}; {cpu}" if torch.cuda.is_available() else cpu


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
