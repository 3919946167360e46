"""Run the comparisons that are missing, in their order of importance, and sum up those that are there.

    python -m benchmarks.evidence [--methods wmpo dpo] [--budgets 128] [--seeds 0 1 2] [--jobs 2] [--missing] [--summary] [--time-demo 0]

Every cell is one run of the demo without Ray, on one core; it writes a file of its own under
`benchmarks/results/evidence/` and is not run again while that is there. Runs stay in `runs/evidence`, so that what was
interrupted goes on. Seeds of one comparison should be run on one kind of processor: each file names its own.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from rich.console import Console

from benchmarks.evidence import demo_time
from benchmarks.evidence.cells import CellFailed, read, run_cell, shared_run
from benchmarks.evidence.plan import ALL, BUDGETS, SEEDS, Cell, cells
from benchmarks.evidence.summary import summarize


def run_all(missing: list[Cell], runs: Path, jobs: int, console: Console) -> int:
    """Run cells, `jobs` at a time; returns how many failed."""
    locks: dict[str, Lock] = {cell.base: Lock() for cell in missing}

    def work(cell: Cell) -> bool:
        started = time.monotonic()
        try:
            with locks[cell.base]:  # the first cell of a base makes it
                shared_run(cell, runs)
            path = run_cell(cell, runs)
        except CellFailed as error:
            console.print(f"[red]{cell.name}[/]: {error}", highlight=False)
            return False
        console.print(f"{cell.name}: {path.name} after {time.monotonic() - started:.0f} s", highlight=False)
        return True

    with ThreadPoolExecutor(jobs) as pool:
        return sum(not done for done in pool.map(work, missing))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", nargs="+", choices=list(ALL), help="methods and variants; all of them if not given"
    )
    parser.add_argument("--budgets", nargs="+", type=int, choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time; each takes one core")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--time-demo", type=int, metavar="SEED", help="only run the demo on Ray, alone, and time it")
    parser.add_argument("--missing", action="store_true", help="only say what has not been run")
    parser.add_argument("--summary", action="store_true", help="only sum up what is there")
    args = parser.parse_args()
    console = Console()
    if args.time_demo is not None:
        console.print(str(demo_time.measure(args.time_demo, args.runs.resolve())), highlight=False)
        return
    wanted = cells(args.methods, tuple(args.budgets), tuple(args.seeds))
    missing = [cell for cell in wanted if read(cell) is None]
    console.print(f"{len(wanted) - len(missing)} of {len(wanted)} cells are there", highlight=False)
    if args.missing:
        console.print(*(cell.name for cell in missing), sep="\n", highlight=False)
        return
    failed = 0 if args.summary else run_all(missing, args.runs.resolve(), args.jobs, console)
    for path in summarize():
        console.print(str(path), highlight=False)
    if failed:
        raise SystemExit(f"{failed} cells failed; run the same command again to go on")


if __name__ == "__main__":
    main()
