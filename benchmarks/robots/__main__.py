"""Robots and their server over loopback: benchmarks/results/robots.json.

    python -m benchmarks.robots [--parts latency throughput uploads doors fuzz import] [--uploads 1000] [--fuzzed 12000]

latency     act round trip of one robot with one 256x256 frame, raw, beyond the policy's own time
throughput  64 robots in another process on one replica, against the same policy alone in batches of 64
uploads     episodes through a network that cuts, doubles, delays and reorders calls
doors       every method without the token, or with a wrong one
fuzz        mutated messages to every method
lerobot     lerobot's robot client in its own Python (--python), through the bridge: actions that are not the policy's
real-time   success against latency with and without real-time chunking, in a simulator that goes on while it waits:
            benchmarks/results/robots_latency.json
install     the client in an environment of its own, with another Python (--client-python) and numpy 1.26
import      `import` of everything in wmpo_client but its servers, in a fresh process

Each part keeps what it measured when others are measured again. The file says how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.foreign_python import foreign_python
from benchmarks.results_file import RESULTS_DIR, write_results
from benchmarks.robots import acting, reliability
from benchmarks.robots.client_install import PYTHON, client_install
from benchmarks.robots.lerobot_check import lerobot
from benchmarks.robots.real_time import real_time
from wmpo_client.token_file import TOKEN

Figures = dict[str, dict[str, Any]]


def parts(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Figures]]:
    return {
        "latency": lambda: acting.latency(folder, options.acts),
        "throughput": lambda: acting.throughput(folder, options.seconds),
        "uploads": lambda: reliability.uploads(folder, options.uploads),
        "doors": lambda: reliability.doors(folder),
        "fuzz": lambda: reliability.fuzz(folder, options.fuzzed),
        "import": reliability.client_import,
        "real-time": lambda: real_time(options.starts),
        "install": lambda: client_install(folder, options.client_python),
        "lerobot": lambda: lerobot(folder, foreign_python(options.python)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = ["latency", "throughput", "uploads", "doors", "fuzz", "import", "real-time"]
    parser.add_argument("--parts", nargs="+", default=usual)
    parser.add_argument("--acts", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30.0, help="that 64 robots act for")
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--fuzzed", type=int, default=12_000)
    parser.add_argument("--starts", type=int, default=512, help="of each policy, in real time")
    parser.add_argument("--client-python", default=PYTHON)
    parser.add_argument("--python", type=Path, help="one with lerobot, as `make exchange-env` makes it")
    options = parser.parse_args()
    os.environ.setdefault(TOKEN, "a-token-of-the-benchmark-0123")
    for name in options.parts:
        file = "robots_latency" if name == "real-time" else "robots"
        path = RESULTS_DIR / f"{file}.json"
        figures: Figures = json.loads(path.read_text())["figures"] if path.exists() else {}
        with tempfile.TemporaryDirectory(prefix="wmpo-robots-") as folder:
            found = parts(options, Path(folder))[name]()
        load = f"; load average {os.getloadavg()[0]:.1f}"
        figures |= {key: {**figure, "unit": figure["unit"] + load} for key, figure in found.items()}
        print(json.dumps(found), flush=True)
        write_results(file, figures, f"python -m benchmarks.robots --parts {' '.join(options.parts)}")
        print(path)


if __name__ == "__main__":
    main()
