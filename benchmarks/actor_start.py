"""What an actor costs before it can serve: in a fresh process, in a spare one, and in a spare that has loaded models.

    -> benchmarks/results/actor_start.json

    python -m benchmarks.actor_start [--run DIR]

Each role of the demo is imported and constructed in a process of its own. Seconds are of the processor, so that whatever
else the machine does does not count. DIR is a run that is done up to the gate; without it one is made.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.prepared_run import ROOT, make_run
from benchmarks.results_file import write_results
from cluster.runtimes.preload import MODELS, MODULES
from cluster.runtimes.spares import MODELS_FILE, libraries_of, models_of
from wmpo_ray.config.dumping import config_to_json
from wmpo_ray.config.loading import read_config_json
from wmpo_ray.config.roles import roles_of
from wmpo_ray.config.run import Config

PROGRAM = """
import json, resource, sys, time
from pathlib import Path
kind, folder, actor, settings, *names = sys.argv[1:]
if kind != "fresh":
    from cluster.runtimes.preload import preload
    preload()
spare_s, spare_bytes = time.process_time(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from importlib import import_module
from wmpo_ray.config.loading import validate
module, _, name = actor.partition(":")
cls = getattr(import_module(module), name)
cls(validate(json.loads(settings)), *(name and str(Path(folder) / name) for name in names))
print(json.dumps([spare_s, spare_bytes, time.process_time() - spare_s, len(sys.modules)]))
"""
PLACES = {
    "policy": "models/base-policy",
    "world_model": "models/world-model",
    "reward_model": "models/reward-model",
    "verifier": "",
    "checkpoints": "checkpoints",
}


def start(run: Path, config: Config, role: Any, kind: str, scratch: str) -> list[float]:
    """[seconds and bytes of the preloading, seconds until the actor is there, modules]."""
    folders = [PLACES[name] for name in role.models]
    environment = os.environ | {MODULES: ",".join(libraries_of(config)), "OMP_NUM_THREADS": "1"}
    if kind == "loaded":
        loading = config.cluster.model_copy(update={"spares_load_models": True})
        config = config.model_copy(update={"cluster": loading})
        told = models_of(config, {name: str(run / place) for name, place in PLACES.items() if place})
        environment[MODELS] = str(Path(scratch) / MODELS_FILE)
        Path(environment[MODELS]).write_text(told)
    command = [sys.executable, "-c", PROGRAM, kind, str(run), role.actor, config_to_json(config), *folders]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(run: Path, repetitions: int, scratch: str) -> dict[str, dict[str, Any]]:
    config = read_config_json(run / "config.json")
    figures: dict[str, dict[str, Any]] = {}
    spares: list[list[float]] = []
    for role in roles_of(config):
        for kind in ("fresh", "spare", *(("loaded",) if role.rolls_out(config) else ())):
            told = [start(run, config, role, kind, scratch) for _ in range(repetitions)]
            spares += told if kind == "spare" else []
            if kind == "loaded":
                told_s, told_mib = (statistics.median(each[place] for each in told) for place in (0, 1))
                figures["spare_loaded_s"] = {"value": round(told_s, 3), "unit": "s of processor time, models included"}
                figures["spare_loaded_memory"] = {"value": round(told_mib / 2**20), "unit": "MiB, models included"}
            value = round(statistics.median(each[2] for each in told), 3)
            unit = f"s of processor time until the actor is there, of {repetitions} the median"
            figures[f"{role.name}_{kind}_s"] = {"value": value, "unit": unit}
    modules = f"s of processor time for the {max(each[3] for each in spares):.0f} modules of a spare"
    figures["spare_s"] = {"value": round(statistics.median(each[0] for each in spares), 3), "unit": modules}
    memory = statistics.median(each[1] for each in spares) / 2**20
    figures["spare_memory"] = {"value": round(memory), "unit": "MiB, code that processes share included"}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run done up to the gate; it is only read")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = arguments.run or make_run(Path(temporary) / "demo")
        figures = measure(run, arguments.repetitions, temporary)
    for name, figure in figures.items():
        print(f"{name}: {figure['value']:g} {figure['unit']}")
    print(
        write_results("actor_start", figures, f"python -m benchmarks.actor_start --repetitions {arguments.repetitions}")
    )


if __name__ == "__main__":
    main()
