"""Other policies and learners on the embedded task: benchmarks/results/learners.json.

    python -m benchmarks.learners PART [--seeds 0 1 2] [--out runs/learners] [--set KEY=VALUE ...]

A part runs what is not there yet in `--out`, goes on with what was interrupted, and writes its own figures; those of the
others stay. With `--set`, for runs that are smaller or otherwise changed, the figures are printed and not written.

    flow    Flow-GRPO: the preset flow-demo for each seed, its gain over the cloned base policy
    parity  published flow-matching policies against lerobot's own classes: comparisons that fail
    multi   the preset two-tasks against a run of each of its tasks alone, with the same network, budget per task and
            seed: points of success that a task loses by sharing policy, world model and reward model
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.results_file import update_results
from wmpo_ray.config.loading import load_config
from wmpo_ray.parity import flow_fixtures
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.outcomes import read_outcomes, run_outcomes_file
from wmpo_ray.statistics.paired import bootstrap_difference

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "golden"
Figures = dict[str, dict[str, Any]]


class Part(NamedTuple):
    """`prefixes`: how the names of its figures begin; `measure` runs what is missing and returns them."""

    prefixes: tuple[str, ...]
    measure: Callable[[Path, Sequence[int], Sequence[str]], Figures]  # of (folder for runs, seeds, further settings)


def finished_run(preset: str, out: Path, settings: Sequence[str]) -> RunFolder:
    """A run of a preset in one process, begun, gone on with, or found finished. Raises SystemExit where it fails."""
    if not ((out / "summary.json").is_file() and RunFolder(out).is_done("evaluate")):
        words = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "-m", "wmpo_ray", "run", preset, "--serial", "--force", "--resume", "--quiet"]
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out.with_suffix(".log"), "a") as log:
            done = subprocess.run(
                [*command, "--out", str(out), *words], cwd=ROOT, stdout=log, stderr=log, check=False, env=os.environ
            )
        if done.returncode:
            raise SystemExit(f"{out.name} ended with {done.returncode}; see {out.with_suffix('.log')}")
    return RunFolder(out)


def gain(runs: Sequence[Path]) -> tuple[float, float, float]:
    """Points of success that the final policies have over their bases, with the interval over seeds and starts."""
    base, final = (
        np.array([read_outcomes(run_outcomes_file(run, policy)).success for run in runs])
        for policy in ("base", "final")
    )
    value, low, high = bootstrap_difference(base, final)
    return 100 * value, 100 * low, 100 * high


def flow(out: Path, seeds: Sequence[int], settings: Sequence[str]) -> Figures:
    runs = [finished_run("flow-demo", out / f"flow-s{seed}", [f"seed={seed}", *settings]).path for seed in seeds]
    value, low, high = gain(runs)
    rates = {
        policy: [100 * read_outcomes(run_outcomes_file(run, policy)).rate["value"] for run in runs]
        for policy in ("base", "final")
    }
    each = ", ".join(
        f"{before:.1f} -> {after:.1f}" for before, after in zip(rates["base"], rates["final"], strict=True)
    )
    num = len(read_outcomes(run_outcomes_file(runs[0], "final")).success)
    common = {"seeds": list(seeds)}
    return {
        "flow_gain_points": {
            "value": round(value, 1),
            "unit": f"points of success on {num} held-out starts, by the ODE; each seed: {each}",
            "interval": [round(low, 1), round(high, 1)],
            **common,
        },
        "flow_base_success": {"value": round(float(np.mean(rates["base"])), 1), "unit": "percent, cloned", **common},
        "flow_success": {"value": round(float(np.mean(rates["final"])), 1), "unit": "percent", **common},
    }


def parity(out: Path, seeds: Sequence[int], settings: Sequence[str]) -> Figures:
    cases = [case for kind in ("smolvla", "pi0", "pi05") for case in flow_fixtures.check(FIXTURES / kind)]
    failed = sum(not case.passed for case in cases)
    return {
        "flow_parity_failed": {
            "value": failed,
            "unit": f"of {len(cases)} comparisons with lerobot's SmolVLA, pi0 and pi0.5",
        }
    }


def multi(out: Path, seeds: Sequence[int], settings: Sequence[str]) -> Figures:
    config = load_config("two-tasks", list(settings))
    network, cloning = config.policy.network, config.policy.cloning
    same = [
        f"policy.network.width={network.width}",
        f"policy.cloning.steps={cloning.steps // len(config.environment.task_names)}",
        f"evaluation.num_starts={config.evaluation.num_starts}",  # so that runs have every start in common
    ]
    together, alone = [], dict[str, list[Path]]()
    for seed in seeds:
        own = [f"seed={seed}", *settings]
        together.append(finished_run("two-tasks", out / f"two-tasks-s{seed}", own).path)
        for task in config.environment.task_names:
            changed = [f"environment.task={task}", *own, *same]
            alone.setdefault(task, []).append(finished_run("demo", out / f"{task}-s{seed}", changed).path)
    figures: Figures = {}
    for task, runs in alone.items():
        single, shared = on_starts_of(task, runs, together)
        value, low, high = bootstrap_difference(shared, single)
        each = ", ".join(f"{100 * a:.1f} / {100 * b:.1f}" for a, b in zip(single.mean(1), shared.mean(1), strict=True))
        figures[f"multi_task_loss_points_{task}"] = {
            "value": round(100 * value, 1),
            "unit": f"points of success on {single.shape[1]} held-out starts, alone / with the other task: {each}",
            "interval": [round(100 * low, 1), round(100 * high, 1)],
            "seeds": list(seeds),
        }
    worst = max(figures.values(), key=lambda figure: figure["value"])
    return {"multi_task_loss_points": {**worst, "unit": "points of success, of the task that loses most"}, **figures}


def on_starts_of(task: str, alone: Sequence[Path], together: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Success [S, N] bool of final policies trained on a task alone and on several, on its N starts in both."""
    found: tuple[list[list[bool]], list[list[bool]]] = [], []
    for one, several in zip(alone, together, strict=True):
        shared = read_outcomes(run_outcomes_file(several, "final")).of_tasks([task])
        single = read_outcomes(run_outcomes_file(one, "final"))
        by_start = dict(zip(single.starts, single.success, strict=True))
        found[0].append([by_start[start] for start in shared.starts])
        found[1].append(shared.success)
    return np.array(found[0]), np.array(found[1])


PARTS = {
    "flow": Part(("flow_gain", "flow_base", "flow_success"), flow),
    "parity": Part(("flow_parity",), parity),
    "multi": Part(("multi_task",), multi),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "learners")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    part = PARTS[options.part]
    figures = part.measure(options.out.absolute(), options.seeds, options.set)
    if options.set:
        print(json.dumps(figures, indent=1))
        return
    command = f"python -m benchmarks.learners {options.part} --seeds {' '.join(map(str, options.seeds))}"
    print(update_results("learners", part.prefixes, figures, command))


if __name__ == "__main__":
    main()
