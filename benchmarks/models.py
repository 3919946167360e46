"""The published models in figures: parity with their fixtures, names and shapes at full size, memory of loading.

    python -m benchmarks.models --fixtures ../shared/formats/golden

Runs what `wmpo parity` runs on a folder of fixtures, and then loads a policy of a billion parameters from shards that it
writes to a temporary folder (2 GB): the peak of host memory over the size of the weights in bfloat16.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file

from benchmarks.results_file import write_results
from wmpo_ray.parity.fixtures import run_fixtures
from wmpo_ray.parity.manifests import manifest_mismatches
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
from wmpo_ray.policies.openvla.settings import OpenVLAConfig

ROOT = Path(__file__).parents[1]
# Vision towers and vocabulary as published, a smaller language model between them.
BILLION = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 8}
NUM_SHARDS = 6
Figures = dict[str, dict[str, Any]]


def parity_figures(fixtures: Path) -> Figures:
    started = time.perf_counter()
    results = list(run_fixtures(fixtures))
    cases = [case for result in results for case in result.cases or ()]
    mismatches = [line for lines in manifest_mismatches(fixtures / "manifests").values() for line in lines]
    seconds = time.perf_counter() - started
    failed = [case for case in cases if not case.passed]
    for case in failed:
        print(case, file=sys.stderr)
    # One step of a pixel is the whole tolerance of images: it says nothing about how near the arithmetic is.
    closest = max((case for case in cases if 0 < case.tolerance < 1), key=lambda case: case.max_error / case.tolerance)
    return {
        "parity_cases": {"value": len(cases), "unit": "tensors and decisions compared with published ones"},
        "parity_failed": {"value": len(failed), "unit": "of them out of tolerance"},
        "parity_unread": {"value": sum(result.cases is None for result in results), "unit": "fixtures nothing reads"},
        "parity_closest": {
            "value": closest.max_error / closest.tolerance,
            "unit": f"largest error in tolerances: {closest.case}, {closest.tensor}",
        },
        "manifest_mismatches": {
            "value": len(mismatches),
            "unit": "names or shapes of the full-size models that differ",
        },
        "parity_seconds": {"value": round(seconds, 1), "unit": "s"},
    }


# -- memory of loading -------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path) -> int:
    """A policy of about a billion parameters in shards with an index, bfloat16; returns the bytes of its weights."""
    with torch.device("meta"):
        shapes = OpenVLAOFTPolicy(OpenVLAConfig(text_config={"vocab_size": 32064, **BILLION})).to(torch.bfloat16)
    shapes.config.dtype = torch.bfloat16
    shapes.config.save_pretrained(folder)
    state = shapes.state_dict()
    names = list(state)
    index: dict[str, str] = {}
    for shard in range(NUM_SHARDS):
        file = f"model-{shard + 1:05}-of-{NUM_SHARDS:05}.safetensors"
        part = {name: torch.full(state[name].shape, 0.01, dtype=torch.bfloat16) for name in names[shard::NUM_SHARDS]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return sum(2 * tensor.numel() for tensor in state.values())


def load_figures() -> Figures:
    """Measured in a process of its own: another has memory to spare, which would be used again."""
    with tempfile.TemporaryDirectory() as folder:
        size = write_checkpoint(Path(folder))
        command = [sys.executable, "-m", "benchmarks.models", "--load", folder]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    return {
        "load_peak_ratio": {
            "value": round((measured["peak"] - measured["before"]) / size, 3),
            "unit": "peak host memory of loading over the bf16 size of the weights",
        },
        "load_peak_ratio_with_process": {
            "value": round(measured["peak"] / size, 3),
            "unit": "the same with everything else that the process holds",
        },
        "load_bytes": {"value": size, "unit": f"bytes of weights, bf16, {NUM_SHARDS} shards"},
        "load_seconds": {"value": round(measured["seconds"], 1), "unit": "s"},
    }


def measure_load(folder: Path) -> dict[str, float]:
    OpenVLAOFTPolicy.load(folder)  # imports what it needs
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, started = _process_bytes("VmRSS"), time.perf_counter()
    policy = OpenVLAOFTPolicy.load(folder)
    seconds = time.perf_counter() - started
    assert policy.dtype == torch.bfloat16
    return {"before": before, "peak": _process_bytes("VmHWM"), "seconds": seconds}


def _process_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, help="folder that `wmpo parity` takes")
    parser.add_argument("--load", type=Path, help="only load this folder, and print what it took")
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(measure_load(arguments.load)))
        return
    if arguments.fixtures is None:
        parser.error("--fixtures is needed: the folder that `wmpo parity` takes")
    figures = {**parity_figures(arguments.fixtures), **load_figures()}
    # An absolute path is this machine's alone.
    shown = arguments.fixtures.name if arguments.fixtures.is_absolute() else arguments.fixtures
    path = write_results("models", figures, f"python -m benchmarks.models --fixtures {shown}")
    for name, figure in figures.items():
        Console().print(f"{name}: {figure['value']:g} {figure['unit']}")
    Console().print(path)


if __name__ == "__main__":
    main()
