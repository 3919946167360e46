"""What the pool of environment workers costs beside the raw simulator: demonstrations of PushT on one worker and on two.

    pip install 'wmpo-ray[pusht]' && python -m benchmarks.environment_pool

The raw simulator is the loop of expert, steps and frames, which writes nothing. A worker makes every batch both ways, one
after the other, and the processor time of both is compared: so a machine with other work on it gives the same figure.
Elapsed time means something only where the machine has nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from rich.console import Console

from actors.recording_actor import EpisodeBatch, RecordingActor
from benchmarks.results_file import write_results
from cluster.events.progress import Reporter
from cluster.host.connection import start_here
from cluster.recording import recorder
from cluster.recording.recorder import EpisodeRecorder
from cluster.runtimes.ray_runtime import RayRuntime
from cluster.runtimes.runtime import Work
from cluster.workers.actor_pool import Worker
from cluster.workers.telemetry import Telemetry
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.timeline import count
from wmpo_ray.data.about import Provenance
from wmpo_ray.registry import check_kinds
from wmpo_ray.rollout.evaluation import expert_batch
from wmpo_ray.runs.live_metrics import NoMeter

BAR = 0.9
KEY = (0, "demos")


class TimedRecorder(RecordingActor):
    """Makes every batch twice, as a worker does and in the bare loop, and counts the processor time of each."""

    def __init__(self, config: Config):
        super().__init__(config)
        with tempfile.TemporaryDirectory() as folder:  # imports, the first drawing and the first file
            super().demonstrate(EpisodeBatch(0, np.arange(1), KEY), f"{folder}/first.parquet", Provenance())
        self._start_s, self._num = time.process_time(), 0

    def demonstrate(self, batch: EpisodeBatch, *args: Any) -> Any:
        self._num += 1
        if self._num % 2:
            self._count("raw", lambda: self._raw(batch))
        ended = self._count("pool", lambda: RecordingActor.demonstrate(self, batch, *args))
        if not self._num % 2:
            self._count("raw", lambda: self._raw(batch))
        count("start_cpu_s", self._start_s)
        return ended

    def _raw(self, batch: EpisodeBatch) -> None:
        expert_batch(self.environment, batch.seeds, self.config.demos.action_noise, batch.run_key, batch.first)

    def _count(self, name: str, run: Callable[[], Any]) -> Any:
        cpu, elapsed = time.process_time(), time.perf_counter()
        result = run()
        count(f"{name}_cpu_s", time.process_time() - cpu)
        count(f"{name}_s", time.perf_counter() - elapsed)
        return result


class Calls(Telemetry):
    """Keeps what every call took."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Work] = []

    def worked(self, worker: Worker, call: str, work: Work, *about: Any) -> None:
        self.work.append(work)


class Measured(NamedTuple):
    """Sums over all batches."""

    raw_cpu_s: float  # processor time of the bare loop
    pool_cpu_s: float  # of the workers' own way
    driver_cpu_s: float
    start_cpu_s: float  # of one worker until its first batch
    elapsed_s: float  # from the start of the first call to the end of the last one
    busy_share: float  # of the workers' time, if they had made each batch once


def config_of(num: int, size: int, actors: int) -> Config:
    settings = (f"demos.num_trajectories={num}", f"demos.episodes_per_batch={size}")
    return load_config("pusht", [*settings, f"cluster.environment_actors={actors}"])


def seeds_of(config: Config) -> Any:
    return start_seeds("demos", config.demos.num_trajectories, 0)


def measure(config: Config, runtime: RayRuntime, num: int) -> Measured:
    """The stage `demos` on `num` processes."""
    with tempfile.TemporaryDirectory() as folder:
        workers = EpisodeRecorder(config, Path(folder), "demos", Reporter(), lambda: runtime, NoMeter)
        calls = Calls()
        workers.pool._start = lambda: (runtime, calls, num)
        began = time.process_time()
        with workers:
            seeds = start_seeds("demos", config.demos.num_trajectories, 0)
            workers.record_expert("demos", seeds, KEY, Path(folder) / "demos.parquet")
        driver_cpu_s = time.process_time() - began
    work = calls.work
    elapsed = max(each.start + each.seconds for each in work) - min(each.start for each in work)
    idle = num * elapsed - sum(each.seconds for each in work)

    def total(name: str) -> float:
        return sum(each.recording.counts[name] for each in work)

    start = work[0].recording.counts["start_cpu_s"]
    busy_share = total("pool_s") / (total("pool_s") + idle)
    return Measured(total("raw_cpu_s"), total("pool_cpu_s"), driver_cpu_s, start, elapsed, busy_share)


def figures_of(num: int, one: Measured, two: Measured) -> dict[str, dict[str, Any]]:
    share = two.raw_cpu_s / two.pool_cpu_s * two.busy_share
    load = os.getloadavg()[0]
    return {
        "raw_episode": {"value": round(two.raw_cpu_s / num, 4), "unit": "s of processor time: expert, steps, frames"},
        "pool_episode": {"value": round(two.pool_cpu_s / num, 4), "unit": "s, the same written as a part"},
        "busy_share": {"value": round(two.busy_share, 4), "unit": "of the time of two workers, first call to last"},
        "demos_rate_share": {
            "value": round(share, 4),
            "unit": f"of the raw rate times two processes: raw_episode / pool_episode * busy_share (bar: {BAR:g})",
        },
        "speedup_a_core_each": {
            "value": round(2 * one.pool_cpu_s / two.pool_cpu_s * two.busy_share / one.busy_share, 3),
            "unit": "of two workers over one: 2 * ratio of processor times * ratio of busy shares",
        },
        "speedup_elapsed": {
            "value": round(one.elapsed_s / two.elapsed_s, 3),
            "unit": f"elapsed time of one worker over that of two, on a machine with a load average of {load:.1f}",
        },
        "driver_share": {
            "value": round(two.driver_cpu_s / two.pool_cpu_s, 4),
            "unit": "processor time of the driver over that of the workers, their starts included",
        },
        "worker_start": {
            "value": round(two.start_cpu_s, 2),
            "unit": "s of processor time until a worker's first batch",
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4, help="episodes in a batch")
    args = parser.parse_args()
    config = config_of(args.episodes, args.batch, actors=2)
    check_kinds(config)
    configure_process(config.cluster.threads_per_process)
    recorder.RecordingActor = TimedRecorder  # type: ignore[misc]
    start_here(num_cpus=4)
    try:
        runtime = RayRuntime()
        one, two = (measure(config, runtime, num) for num in (1, 2))
    finally:
        ray.shutdown()
    figures = figures_of(args.episodes, one, two)
    for name, figure in figures.items():
        Console().print(f"{name}: {figure['value']:g} {figure['unit']}")
    Console().print(
        write_results("environment_pool", figures, " ".join(["python -m benchmarks.environment_pool", *sys.argv[1:]]))
    )


if __name__ == "__main__":
    main()
