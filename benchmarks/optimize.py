"""The demo's GRPO stage with and without ends, slots and streaming, on this machine: benchmarks/results/optimize.json.

    python -m benchmarks.optimize [--run DIR] [--updates 6] [--rounds 1]

Each way is one run of the stage on Ray in a process of its own, from copies of one run that has passed the gate; they
take turns, so that what else the machine does meets all of them. Wall time is the stage's own; processor time is that
of all its processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.prepared_run import ROOT, STAGE, check_run, make_run
from benchmarks.results_file import write_results
from cluster.simulation.doors import process_tree
from wmpo_ray.core.files import sha256_of
from wmpo_ray.runs.folder import RunFolder

NAME = "optimize"
CPU_EVERY_S = 0.5
EARLY = ("reward.placement=with_imagination", "rollout.slots=32")
WAYS = {
    "before": ("reward.placement=own", "rollout.slots=0", "filter.fill_probability=0", "cluster.stream_updates=false"),
    "after": (*EARLY, "cluster.stream_updates=true"),
    "after, filled": (*EARLY, "cluster.stream_updates=true", "filter.fill_probability=0.9"),
}
BARS = {"wall_ratio": 0.6, "cpu_ratio": 0.75, "chunks_ratio": 0.75}


class Measured(NamedTuple):
    wall_s: float
    cpu_s: float
    chunks: float  # chunks of trajectories that were imagined
    weights: str  # SHA-256 of the final policy


class Processors:
    """Processor seconds of a process and all that it starts; what has ended counts as last seen."""

    def __init__(self, pid: int):
        self.pid, self.seen = pid, dict[int, float]()

    def look(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        for pid in process_tree(self.pid):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            self.seen[pid] = (int(fields[11]) + int(fields[12])) / tick

    @property
    def seconds(self) -> float:
        return sum(self.seen.values())


def measure(run: Path, folder: Path, settings: tuple[str, ...]) -> Measured:
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report"))
    command = [sys.executable, "-m", "wmpo_ray", "stage", STAGE, "demo", "--out", str(folder), "--resume"]
    command += [word for setting in settings for word in ("--set", setting)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    processors = Processors(child.pid)
    while child.poll() is None:
        processors.look()
        time.sleep(CPU_EVERY_S)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: {child.communicate()[1]}")
    state = RunFolder(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    chunks = sum(line.get("work/imagined_chunks", 0.0) for line in lines)
    weights = sha256_of(next((folder / "models" / "policy").glob("*.safetensors")))
    return Measured(state.summary["stages"][STAGE]["seconds"], processors.seconds, chunks, weights)


def figures(found: dict[str, list[Measured]]) -> dict[str, dict[str, Any]]:
    """Ratios of sums over the rounds, against "before"."""
    before, shown = found["before"], {}
    for way, runs in found.items():
        for name in ("wall_s", "cpu_s", "chunks"):
            value = sum(getattr(run, name) for run in runs) / len(runs)
            shown[f"{way}/{name}"] = {"value": round(value, 1), "unit": "s" if name.endswith("_s") else "chunks"}
    best = min((way for way in found if way != "before"), key=lambda way: sum(run.wall_s for run in found[way]))
    for name, of in (("wall_ratio", "wall_s"), ("cpu_ratio", "cpu_s"), ("chunks_ratio", "chunks")):
        ratio = sum(getattr(run, of) for run in found[best]) / sum(getattr(run, of) for run in before)
        shown[name] = {"value": round(ratio, 3), "unit": f'"{best}" / "before"'}
    same = {run.weights for runs in found.values() for run in runs}
    shown["weights_identical"] = {"value": len(same) == 1, "unit": "final policies of all ways"}
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run of the demo that has passed the gate; made if not given")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each way")
    args = parser.parse_args()
    common = (f"grpo.num_updates={args.updates}", "evaluation.every_updates=0")
    with tempfile.TemporaryDirectory() as name:
        run = args.run or make_run(Path(name) / "run")
        check_run(run)
        found: dict[str, list[Measured]] = {way: [] for way in WAYS}
        for number in range(args.rounds):
            for way, settings in WAYS.items():
                found[way].append(measure(run, Path(name) / f"{number}-{len(found[way])}-{way}", (*settings, *common)))
                print(way, found[way][-1], flush=True)
    shown = figures(found)
    write_results(NAME, shown, f"python -m benchmarks.optimize --updates {args.updates} --rounds {args.rounds}")
    for key, figure in shown.items():
        bar = f"   (bar {BARS[key]:g})" if key in BARS else ""
        print(f"{key}: {figure['value']} {figure['unit']}{bar}")


if __name__ == "__main__":
    main()
