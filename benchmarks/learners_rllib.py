"""PPO of RLlib in the imagined world of the embedded task, beside GRPO: equal imagined frames, equal real episodes.

    python -m benchmarks.learners_rllib [--algorithms PPO APPO] [--perfect] [--runs runs/evidence]

writes its figures into benchmarks/results/learners.json; the shared stages are those of `make evidence`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.cells import make_base, read
from benchmarks.evidence.plan import BUDGET, REFERENCE, Cell
from benchmarks.results_file import update_results
from wmpo_ray.core.statistics import wilson_interval

Figures = dict[str, dict[str, Any]]


def figures(runs: Path, seed: int = 0, algorithms: Sequence[str] = ("PPO",), perfect: bool = False) -> Figures:
    """Success on the held-out starts of GRPO after 15 updates, from its file, and of others with as many chunks.

    `runs`: where the shared stages are, see `make evidence`. Raises ValueError where GRPO has not been measured.
    """
    from cluster.host.security import prepare_ray

    prepare_ray("")
    from cluster.rllib.imagined_training import Plan
    from cluster.rllib.run_rllib import train_in_imagination
    from wmpo_ray.runs.folder import RunFolder

    measured = read(Cell(REFERENCE, BUDGET, seed))
    if measured is None:
        raise ValueError(f"run `python -m benchmarks.evidence --methods {REFERENCE} --seeds {seed}` first")
    base, folder = make_base("world", BUDGET, seed, runs), runs / f"rllib-s{seed}"
    if not folder.exists():
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("report", "*.lock"))
    config = RunFolder(folder).config
    chunks = int(sum(value for _, value in measured["curves"]["imagined/trajectories"])) * config.num_chunks
    frames = chunks * config.rollout.chunk_length
    bits = measured["sampled"]["policies"]["final"]["success"]
    low, high = wilson_interval(bits.count("1"), len(bits))
    found: Figures = {
        "grpo_success": {
            "value": bits.count("1") / len(bits),
            "unit": "share",
            "interval": [low, high],
            "frames": frames,
            "seeds": [seed],
        }
    }
    for algorithm in algorithms:
        plan = Plan(folder, config, algorithm, chunks, perfect=perfect)
        found[f"rllib_{plan.label.replace('-', '_')}_success"] = _figure(train_in_imagination(plan), seed)
    return found


def _figure(result: dict[str, Any], seed: int) -> dict[str, Any]:
    rate = result["success"]
    return {
        "value": rate["value"],
        "unit": "share",
        "interval": [rate["low"], rate["high"]],
        "frames": result["frames"],
        "seconds": result["seconds"],
        "seeds": [seed],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=["PPO"])
    parser.add_argument("--perfect", action="store_true", help="in the simulator: the control")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    args = parser.parse_args()
    found = figures(args.runs.resolve(), 0, args.algorithms, args.perfect)
    command = f"python -m benchmarks.learners_rllib --algorithms {' '.join(args.algorithms)}"
    print(update_results("learners", tuple(found), found, command + (" --perfect" if args.perfect else "")))


if __name__ == "__main__":
    main()
