"""Whole runs in simulators that nobody here wrote, several seeds each: benchmarks/results/simulators.json.

    python -m benchmarks.simulators [--tasks lift] [--seeds 0 1 2] [--runs runs/simulators] [--jobs 2] [--summary [--commit HASH]]
        [--force] [--set KEY=VALUE ...]

Each seed is one `wmpo run PRESET --serial` in a process of its own with one thread; what is there is gone on with. Needs
the simulators: make setup VENV=.venv-sim EXTRAS=sim,pusht. Figures are named TASK_..., means over the seeds that are
done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import update_results
from wmpo_ray.core.statistics import mean_interval
from wmpo_ray.runs.outcomes import outcomes_file, read_outcomes
from wmpo_ray.statistics.paired import bootstrap_difference

ROOT = Path(__file__).parents[1]
TASKS = {"lift": "lift", "pusht": "pusht", "stack": "stack"}  # name of the figures -> preset


def run_seed(task: str, seed: int, runs: Path, options: list[str]) -> int:
    """One whole run, or what is left of it, with these options of `wmpo run`; returns its exit code."""
    out = folder_of(task, seed, runs)
    command = [sys.executable, "-m", "wmpo_ray", "run", TASKS[task], "--serial", "--resume", "--out", str(out)]
    with (runs / f"{out.name}.log").open("w") as log:
        return subprocess.run(
            [*command, "--set", f"seed={seed}", *options], check=False, cwd=ROOT, stdout=log, stderr=log
        ).returncode


def folder_of(task: str, seed: int, runs: Path) -> Path:
    return runs / f"{task}-s{seed}"


def summary_of(task: str, seed: int, runs: Path) -> dict[str, Any] | None:
    """None where the run has not come to its end."""
    path = folder_of(task, seed, runs) / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    return summary if "evaluate" in summary.get("stages", {}) else None


def figures_of(task: str, seeds: list[int], summaries: list[dict[str, Any]], runs: Path) -> dict[str, dict[str, Any]]:
    """`seeds`: those that `summaries` belong to."""
    pairs = [[_successes(task, seed, runs, policy) for seed in seeds] for policy in ("base", "final")]
    gain, low, high = (100 * share for share in bootstrap_difference(np.stack(pairs[0]), np.stack(pairs[1])))
    stages = [summary["stages"] for summary in summaries]

    def mean(name: str, values: list[float], unit: str) -> dict[str, dict[str, Any]]:
        figure: dict[str, Any] = {"value": float(np.mean(values)), "unit": unit, "seeds": values}
        if len(values) > 1:
            figure["interval"] = list(mean_interval(values)[1:])
        return {f"{task}_{name}": figure}

    found: dict[str, dict[str, Any]] = {}
    found |= mean("expert_success", [stage["demos"]["metrics"]["success"] for stage in stages], "share")
    for name, policy in (("base_success", "base_success"), ("final_success", "final_success")):
        found |= mean(name, [summary["result"][policy]["value"] for summary in summaries], "share")
    gains = [summary["result"]["gain_points"] for summary in summaries]
    found[f"{task}_gain_points"] = {
        "value": gain,
        "unit": "points, interval of a bootstrap over seeds and starts",
        "interval": [low, high],
        "seeds": gains,
    }
    found[f"{task}_gain_low"] = {"value": low, "unit": "points"}
    found |= mean("label_agreement", [stage["gate"]["metrics"]["label_agreement"] for stage in stages], "share")
    found |= mean("safe_horizon", [stage["gate"]["metrics"]["safe_horizon"] for stage in stages], "steps")
    found |= mean("reward_f1", [stage["reward-model"]["metrics"]["f1"] for stage in stages], "F1")
    found |= mean("seconds", [sum(each["seconds"] for each in stage.values()) for stage in stages], "s")
    return found


def _successes(task: str, seed: int, runs: Path, policy: str) -> np.ndarray:
    return np.array(read_outcomes(outcomes_file(folder_of(task, seed, runs), policy)).success, float)


def summarize(tasks: list[str], seeds: list[int], runs: Path, options: list[str], commit: str | None = None) -> None:
    """Write figures of the tasks that have finished runs; those of other tasks stay as they are."""
    for task in tasks:
        found = {seed: summary for seed in seeds if (summary := summary_of(task, seed, runs))}
        if found:
            command = (
                f"python -m benchmarks.simulators --tasks {' '.join([task, '--seeds', *map(str, found), *options])}"
            )
            figures = figures_of(task, list(found), list(found.values()), runs)
            print(update_results("simulators", (f"{task}_",), figures, command, commit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["lift"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/simulators"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; each takes one core")
    parser.add_argument("--summary", action="store_true", help="only sum up what is there")
    parser.add_argument("--commit", default="", help="with --summary: the one that the runs were made with")
    parser.add_argument("--force", action="store_true", help="go on where the imagined world fails the gate")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the runs")
    args = parser.parse_args()
    options = [*(["--force"] if args.force else []), *(part for each in args.set for part in ("--set", each))]
    runs = args.runs.absolute()
    if not args.summary:
        runs.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(args.jobs) as pool:
            cells = [(task, seed) for task in args.tasks for seed in args.seeds]
            codes = list(pool.map(lambda cell: run_seed(*cell, runs, options), cells))
        for (task, seed), code in zip(cells, codes, strict=True):
            print(f"{task}, seed {seed}: exit code {code}")
    summarize(args.tasks, args.seeds, runs, options, args.commit or None)


if __name__ == "__main__":
    main()
