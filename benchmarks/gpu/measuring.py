"""Arguments, clocks and the ceiling that all scripts share."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.results_file import merge_results
from wmpo_ray.core.runtime_settings import process_device
from wmpo_ray.planning.costs import TERA

Figures = dict[str, dict[str, Any]]
CEILING_SIDE = {"full": 8192, "small": 128}  # of the square matrices


class Bench:
    """One script's run: `--size`, `--device`, its figures on their way to `benchmarks/results/gpu.json`."""

    def __init__(self, part: str, description: str | None, options: Callable[[argparse.ArgumentParser], Any] = id):
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--size", choices=("full", "small"), default="full")
        parser.add_argument("--device", default="auto")
        parser.add_argument("--no-results", action="store_true", help="print the figures only")
        options(parser)
        self.arguments = parser.parse_args()
        self.part, self.size = part, self.arguments.size
        self.device = process_device(self.arguments.device)
        self.figures: Figures = {}
        # A CPU has no fast bfloat16 everywhere; small models are there to run the code.
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self._temporary = tempfile.TemporaryDirectory(prefix="wmpo-gpu-")  # gone with this object
        self.folder = Path(self._temporary.name)
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("medium")

    def add(self, key: str, value: float, unit: str, **more: Any) -> None:
        self.figures[key] = {"value": float(value), "unit": unit, **more}
        print(f"{self.part}/{key}: {value:.4g} {unit}", flush=True)

    def seconds(self, call: Callable[[], Any], repetitions: int = 3, warmups: int = 1) -> float:
        """Median time of a call, the device's work included."""
        for _ in range(warmups):
            call()
        times = []
        for _ in range(repetitions):
            self.synchronize()
            started = time.perf_counter()
            call()
            self.synchronize()
            times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2]

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ceiling(self) -> float:
        """TFLOP/s of large square matrix products in `dtype`: the best that this device does."""
        side = CEILING_SIDE[self.size]
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * side**3 / self.seconds(lambda: a @ b, repetitions=10, warmups=3) / TERA

    def peak_memory(self, key: str) -> None:
        if self.device.type == "cuda":
            self.add(key, torch.cuda.max_memory_allocated(self.device) / 2**30, "GiB")
            torch.cuda.reset_peak_memory_stats(self.device)

    def fits(self, call: Callable[[], Any], what: str) -> bool:
        """Run something that may need more memory than there is; False, and a line, if it does."""
        try:
            call()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            print(f"{self.part}/{what}: does not fit in the memory of this device", flush=True)
            return False
        return True

    def save(self) -> None:
        if not self.arguments.no_results:
            command = " ".join([f"python -m benchmarks.gpu.{self.part}", *sys.argv[1:]])
            print(merge_results("gpu", self.part, self.figures, command))


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def random_frames(shape: Iterable[int]) -> torch.Tensor:
    return torch.randint(0, 256, tuple(shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
