"""The demo with several seeds, as a user runs it, measured from outside: benchmarks/results/demo.json.

    python -m benchmarks.demo [--seeds 0 1 2] [--out runs/bench] [--ci]

Each seed is one `python -m wmpo_ray run demo` in a process of its own; memory is the sum over that process and all it
starts (proportional share of shared pages), sampled every second. With --ci a clean clone is taken through `.ci/run`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import RESULTS_DIR, current_commit, write_results
from wmpo_ray.core.statistics import mean_interval, wilson_interval

ROOT = Path(__file__).parents[1]


def descendants(pid: int) -> set[int]:
    """The process and everything it started, by parent links in /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = set(), [pid]
    while todo:
        current = todo.pop()
        found.add(current)
        todo += children.get(current, [])
    return found


def memory_gb(pid: int) -> float:
    """Memory of a process tree in GB, shared pages counted once."""
    total = 0
    for process in descendants(pid):
        try:
            lines = (Path("/proc") / str(process) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e9


def run_demo(preset: str, seed: int, out: Path, settings: list[str], keep: bool, force: bool) -> dict:
    """One run in its own process -> its summary, with `wall_s` and `peak_memory_gb`.

    With `keep` a run that is there is gone on with: its seconds are then those of its stages, and its memory is
    measured only in what was left to do (0 if nothing was).
    """
    if not keep:
        shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "wmpo_ray", "run", preset, "--out", str(out), "--set", f"seed={seed}"]
    for setting in settings:
        command += ["--set", setting]
    command += ["--force"] if force else []
    started, peak = time.monotonic(), 0.0
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None:
        peak = max(peak, memory_gb(process.pid))
        time.sleep(1)
    wall = time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    summary = json.loads((out / "summary.json").read_text())
    stages = sum(stage["seconds"] for stage in summary["stages"].values())
    return {**summary, "wall_s": max(wall, stages), "peak_memory_gb": peak}


def ci_seconds() -> float:
    """Wall time of .ci/run in a clean clone of what is committed."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", str(ROOT), f"{folder}/clone"], check=True)
        started = time.monotonic()
        subprocess.run([f"{folder}/clone/.ci/run"], check=True)
        return time.monotonic() - started


def cache_figure() -> dict[str, dict]:
    """The time saved by the conditioning cache, if `benchmarks.cache` has been run."""
    path = RESULTS_DIR / "cache.json"
    return {"cache_time_ratio": json.loads(path.read_text())["figures"]["cache_time_ratio"]} if path.exists() else {}


def add_ci(name: str) -> None:
    """Add `ci_seconds` to a results file; the other figures keep the command and commit of their own run."""
    earlier = json.loads((RESULTS_DIR / f"{name}.json").read_text())
    figures = {**earlier["figures"], **cache_figure()}
    figures |= {"ci_seconds": {"value": ci_seconds(), "unit": "s", "commit": current_commit()}}
    command = f"{earlier['command']}; python -m benchmarks.demo --only-ci"
    path = write_results(name, figures, command, commit=earlier["commit"])
    print(f"{path}: ci_seconds {figures['ci_seconds']['value']:.0f} s")


def success_figure(runs: list[dict], key: str) -> dict:
    """Mean over seeds; the interval is that of the mean over seeds, `pooled` that of all episodes together."""
    values = [run["result"][key]["value"] for run in runs]
    mean, low, high = mean_interval(values)
    num = sum(run["result"][key]["num"] for run in runs)
    pooled = wilson_interval(round(mean * num), num)
    return {"value": mean, "unit": "share", "interval": [low, high], "pooled_interval": list(pooled), "seeds": values}


def figures_of(runs: list[dict]) -> dict[str, dict]:
    def figure(values: list[float], unit: str) -> dict:
        mean, low, high = mean_interval(values)
        return {"value": mean, "unit": unit, "interval": [low, high], "seeds": values}

    gate = [run["stages"]["gate"]["metrics"] for run in runs]
    figures = {
        "seconds": {**figure([run["wall_s"] for run in runs], "s"), "value": max(run["wall_s"] for run in runs)},
        "peak_memory_gb": {
            "value": max(run["peak_memory_gb"] for run in runs),
            "unit": "GB",
            "seeds": [run["peak_memory_gb"] for run in runs],
        },
        "base_success": success_figure(runs, "base_success"),
        "final_success": success_figure(runs, "final_success"),
        "gain_points": figure([run["result"]["gain_points"] for run in runs], "points"),
        "label_agreement": figure([g["label_agreement"] for g in gate], "share"),
        "unverified_label_agreement": figure([g["unverified_label_agreement"] for g in gate], "share"),
        "reward_f1": figure([run["stages"]["reward-model"]["metrics"]["f1"] for run in runs], "F1"),
    }
    for stage in runs[0]["stages"]:
        figures[f"stage_{stage.replace('-', '_')}_s"] = figure([run["stages"][stage]["seconds"] for run in runs], "s")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--name", default="demo", help="name of the results file")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--keep", action="store_true", help="go on with runs that are in --out already")
    parser.add_argument("--force", action="store_true", help="go on past a gate that is not met")
    parser.add_argument("--ci", action="store_true", help="also time .ci/run in a clean clone")
    parser.add_argument("--only-ci", action="store_true", help="add the time of .ci/run to the results that are there")
    args = parser.parse_args()
    if args.only_ci:
        add_ci(args.name)
        return
    runs = [
        run_demo(args.preset, seed, args.out / f"{args.preset}-{seed}", args.settings, args.keep, args.force)
        for seed in args.seeds
    ]
    figures = {**figures_of(runs), **cache_figure()}
    if args.ci:
        figures["ci_seconds"] = {"value": ci_seconds(), "unit": "s"}
    path = write_results(args.name, figures, "python -m benchmarks.demo " + " ".join(sys.argv[1:]))
    print(f"{path}: " + ", ".join(f"{key} {figure['value']:.3g} {figure['unit']}" for key, figure in figures.items()))


if __name__ == "__main__":
    main()
