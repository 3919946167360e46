"""PPO of RLlib in the imagined world of the embedded task, beside GRPO: equal imagined frames, equal real episodes.

    python -m benchmarks.learners_rllib [--algorithms PPO APPO] [--perfect] [--seeds 0 1 2] [--runs runs/evidence]

writes its figures into benchmarks/results/learners.json; the shared stages are those of `make evidence`, and a training that
is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.evidence.cells import make_base, read
from benchmarks.evidence.plan import BUDGET, REFERENCE, Cell
from benchmarks.results_file import update_results
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.statistics.paired import bootstrap_difference

Figures = dict[str, dict[str, Any]]


class Trained(NamedTuple):
    """One training: success of each held-out start, imagined frames, seconds (none for GRPO, whose run is another's)."""

    success: np.ndarray
    frames: int
    seconds: float | None = None


def grpo(seed: int, chunk_length: int, num_chunks: int) -> Trained:
    """GRPO after 15 updates, as its file of `make evidence` has it. Raises ValueError where it has not been measured."""
    measured = read(Cell(REFERENCE, BUDGET, seed))
    if measured is None:
        raise ValueError(f"run `python -m benchmarks.evidence --methods {REFERENCE} --seeds {seed}` first")
    trajectories = int(sum(value for _, value in measured["curves"]["imagined/trajectories"]))
    bits = measured["sampled"]["policies"]["final"]["success"]
    return Trained(np.array([bit == "1" for bit in bits], float), trajectories * num_chunks * chunk_length)


def rllib(runs: Path, seed: int, algorithm: str, perfect: bool) -> tuple[Trained, Trained]:
    """(an algorithm of RLlib, GRPO) with as many imagined frames, from the same stages of the same seed."""
    from cluster.rllib.imagined_training import Plan
    from cluster.rllib.run_rllib import train_in_imagination
    from wmpo_ray.runs.folder import RunFolder
    from wmpo_ray.runs.other_learners import FOLDER, OUTCOMES, RESULT

    folder = runs / f"rllib-s{seed}"
    if not folder.exists():
        base = make_base("world", BUDGET, seed, runs)
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("report", "*.lock"))
    config = RunFolder(folder).config
    reference = grpo(seed, config.rollout.chunk_length, config.num_chunks)
    plan = Plan(folder, config, algorithm, reference.frames // config.rollout.chunk_length, perfect=perfect)
    done = folder / FOLDER / plan.label
    if not (done / RESULT).is_file():
        train_in_imagination(plan)
    result = json.loads((done / RESULT).read_text())
    outcomes = json.loads((done / OUTCOMES).read_text())
    return Trained(np.array(outcomes["success"], float), result["frames"], result["seconds"]), reference


def figures(runs: Path, seeds: Sequence[int], algorithm: str, perfect: bool) -> Figures:
    """Success of both, and what the algorithm has more, in points, with the interval over seeds and starts."""
    pairs = [rllib(runs, seed, algorithm, perfect) for seed in seeds]
    theirs, ours = ([pair[i] for pair in pairs] for i in range(2))
    label = algorithm.lower() + ("_perfect" if perfect else "")
    lead, low, high = (
        100 * share
        for share in bootstrap_difference(
            np.stack([run.success for run in ours]), np.stack([run.success for run in theirs])
        )
    )
    return {
        "grpo_success": _success(ours, seeds),
        f"rllib_{label}_success": _success(theirs, seeds),
        f"rllib_{label}_over_grpo": {
            "value": lead,
            "unit": "points of success at equal imagined frames, interval over seeds and starts",
            "interval": [low, high],
            "seeds": list(seeds),
        },
    }


def _success(runs: Sequence[Trained], seeds: Sequence[int]) -> dict[str, Any]:
    """Of all starts and seeds; the interval is Wilson's over starts."""
    flags = np.concatenate([run.success for run in runs])
    each = [round(float(run.success.mean()), 4) for run in runs]
    low, high = wilson_interval(int(flags.sum()), len(flags))
    seconds = {"seconds": [run.seconds for run in runs]} if runs[0].seconds is not None else {}
    return {
        "value": float(flags.mean()),
        "unit": "share of held-out starts",
        "interval": [low, high],
        "each": each,
        "frames": [run.frames for run in runs],
        **seconds,
        "seeds": list(seeds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=["PPO"])
    parser.add_argument("--perfect", action="store_true", help="in the simulator: the control")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    args = parser.parse_args()
    from cluster.host.security import prepare_ray

    prepare_ray("")
    for algorithm in args.algorithms:
        found = figures(args.runs.resolve(), args.seeds, algorithm, args.perfect)
        command = (
            f"python -m benchmarks.learners_rllib --algorithms {algorithm} --seeds {' '.join(map(str, args.seeds))}"
        )
        print(update_results("learners", tuple(found), found, command + (" --perfect" if args.perfect else "")))


if __name__ == "__main__":
    main()
