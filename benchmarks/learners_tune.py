"""A sweep of eight trials over GRPO's settings against one run from the beginning, at the smallest size.

    python -m benchmarks.learners_tune [--runs runs/learners]

writes `sweep_time_ratio` into benchmarks/results/learners.json.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import update_results

SPACE = """[space.grpo]
learning_rate = { loguniform = [2e-5, 2e-3] }
clip_high = { uniform = [0.2, 0.4] }

[search]
trials = 8
min_updates = 1
"""


def figures(runs: Path, preset: str = "smoke") -> dict[str, dict[str, Any]]:
    """`sweep_time_ratio`: seconds of the sweep, its shared stages included, over those of one run of its own."""
    alone, swept, space = runs / "alone", runs / "sweep", runs / "space.toml"
    for folder in (alone, swept):
        shutil.rmtree(folder, ignore_errors=True)
    runs.mkdir(parents=True, exist_ok=True)
    space.write_text(SPACE)
    single = _seconds("run", preset, "--serial", "--quiet", "--out", alone)
    sweep = _seconds("tune", preset, "--space", space, "--out", swept)
    return {
        "sweep_time_ratio": {
            "value": sweep / single,
            "unit": "ratio",
            "sweep_s": sweep,
            "one_run_s": single,
            "trials": 8,
        }
    }


def _seconds(*arguments: object) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "wmpo_ray", *map(str, arguments)], check=True)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/learners"))
    found = figures(parser.parse_args().runs.resolve())
    print(update_results("learners", tuple(found), found, "python -m benchmarks.learners_tune"))


if __name__ == "__main__":
    main()
