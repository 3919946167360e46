"""How true the imagined videos of the demo are, and how its failures are imagined: `wmpo fidelity` for several seeds.

    python -m benchmarks.fidelity [--seeds 0 1 2] [--runs DIR]

Runs of each seed go as far as the gate in DIR/seed-N; what is done there is kept. Figures are those of held-out real
episodes of the base policy, replayed in the aligned world model: imagined (`_imagined`), the first frame repeated
(`_still`), and the real frames measured in the same way (`_ceiling`). What is written is the mean over seeds, the value
of each, and an interval that covers the choice of the episodes, and not that of the seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.results_file import write_results
from cluster.cli.fidelity_commands import print_fidelity
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.fidelity.metrics import CEILING, IMAGINED, SOURCES

ROOT = Path(__file__).parents[1]
Figures = dict[str, dict[str, Any]]


def measured_run(folder: Path, seed: int) -> dict[str, Any]:
    """The content of `fidelity.json` of a run of the demo; its stages up to the gate are made where they are missing.

    A gate that is missed does not end the measurement: it is what is measured.
    """
    program = [sys.executable, "-m", "wmpo_ray"]
    run = [*program, "run", "demo", "--serial", "--force", "--resume", "--until", "gate", "--out", str(folder)]
    subprocess.run([*run, "--set", f"seed={seed}"], cwd=ROOT, check=True)
    done = subprocess.run([*program, "fidelity", str(folder), "--json"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def figures_of(contents: Sequence[dict[str, Any]]) -> Figures:
    """Means over seeds, each with the values of the seeds and an interval over episodes."""
    first = contents[0]
    figures: Figures = {"episodes": {"value": first["num_episodes"], "unit": f"of {first['horizon']} steps, each seed"}}
    for name, metric in first["metrics"].items():
        unit = metric["unit"] or "similarity"
        for source in SOURCES:
            values = [one["metrics"][name]["of"][source] for one in contents]
            figures[f"{name}_{source}"] = _figure(values, f"{unit}, {metric['title']}")
        drifts = [one["metrics"][name]["drift"] for one in contents]
        figures[f"{name}_slope"] = _figure([drift["slope"] for drift in drifts], f"{unit} a step")
        steps = [drift["passed"]["step"] for drift in drifts]
        figures[f"{name}_bound_step"] = {
            "value": min((step for step in steps if step is not None), default=0),
            "unit": "first step past halfway to a still picture, of the seed where it is first; 0: never",
            "seeds": [0 if step is None else step for step in steps],
        }
    for source in SOURCES:
        labels = [one["labels"][source]["agreement"]["value"] for one in contents]
        figures[f"labels_right_{source}"] = _share(labels, contents, "share of episodes, labels at the end")
        same = [one["failures"]["agreement"][source]["value"] for one in contents]
        figures[f"outcomes_same_{source}"] = _share(same, contents, "share of episodes with the real outcome")
    for mode in dict.fromkeys(mode for one in contents for mode in one["failures"]["modes"]):
        for source in ("real", IMAGINED, CEILING):
            shares = [one["failures"]["shares"][source].get(mode, {"value": 0.0})["value"] for one in contents]
            figures[f"{mode}_{source}"] = _share(shares, contents, "share of episodes")
    return figures


def _figure(estimates: Sequence[dict[str, float]], unit: str) -> dict[str, Any]:
    """The mean over seeds of means over frames."""
    values = [estimate["value"] for estimate in estimates]
    # Seeds are independent: the variances of their means add up.
    half = float(np.sqrt(sum(((one["high"] - one["low"]) / 2) ** 2 for one in estimates))) / len(estimates)
    mean = float(np.mean(values))
    return {"value": mean, "unit": unit, "interval": [mean - half, mean + half], "seeds": values}


def _share(values: Sequence[float], contents: Sequence[dict[str, Any]], unit: str) -> dict[str, Any]:
    """The share of the episodes of all seeds, of which each has as many."""
    num = sum(one["num_episodes"] for one in contents)
    count = sum(round(value * one["num_episodes"]) for value, one in zip(values, contents, strict=True))
    return {"value": count / num, "unit": unit, "interval": list(wilson_interval(count, num)), "seeds": list(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        runs.mkdir(parents=True, exist_ok=True)
        contents = [measured_run(runs / f"seed-{seed}", seed) for seed in arguments.seeds]
    for content in contents:
        print_fidelity(Console(), content)
    command = f"python -m benchmarks.fidelity --seeds {' '.join(map(str, arguments.seeds))}"
    print(write_results("fidelity", figures_of(contents), command))


if __name__ == "__main__":
    main()
