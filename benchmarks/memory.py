"""Memory that the episodes of a full-size run take: 1,280 of `coffee`, 64.7 GB of frames.

    python -m benchmarks.memory

Writes such a file, with frames that compress well, into a run's folder and measures each part in a process of its own:
what `optimize` and `world-model` read of it, and what `evaluate` keeps of real episodes of the same size. The peak is
that of the whole process, with its libraries. The policy of `evaluate` is a small one that never succeeds: it is the
case in which frames are kept to the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import write_results
from cluster.events.progress import Reporter
from cluster.recipes.context import RunContext
from cluster.recipes.evaluate import save_videos
from cluster.runtimes.serial_runtime import SerialRuntime
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config
from wmpo_ray.core.seeding import generator_for
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.store import episode_writer
from wmpo_ray.data.windows import WindowSampler
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.rollout.evaluation import rollout_outcomes
from wmpo_ray.rollout.fidelity import starts_of
from wmpo_ray.runs.folder import RunFolder

NUM_EPISODES, NUM_WINDOWS, SIZE, ACTION_DIM = 1280, 32, 256, 7
BAR_GIB = 4.0


class LargePocket(PocketEnvironment):
    """The embedded task, shown at full size."""

    frame_shape = (SIZE, SIZE, 3)

    def render(self) -> np.ndarray:
        return super().render().repeat(SIZE // 16, 1).repeat(SIZE // 16, 2)


def config_of_run() -> Config:
    return load_config("coffee")


def context_of(folder: RunFolder) -> RunContext:
    context = RunContext(folder.config, folder, Reporter(), SerialRuntime, force=False)
    context.make_folders()
    return context


def write_file(context: RunContext, num: int) -> dict[str, float]:
    """P of full length, one episode a batch: each frame is of one grey, which tells episode and step."""
    horizon = context.config.environment.horizon
    random, started = np.random.default_rng(0), time.monotonic()
    path = context.trajectory_file("collect")
    with episode_writer(path) as writer:
        for i in range(num):
            frames = np.empty((1, horizon + 1, SIZE, SIZE, 3), np.uint8)
            frames[:] = (np.arange(horizon + 1) + i).astype(np.uint8)[:, None, None, None]
            actions = random.uniform(-1, 1, (1, horizon, ACTION_DIM)).astype(np.float32)
            length, success = np.array([horizon]), np.array([i % 2 == 0])
            writer.append(Episodes(frames, actions, length, success, ("coffee",), np.array([i])))
    total = num * (horizon + 1) * SIZE * SIZE * 3
    return {"frames_gb": total / 1e9, "file_mb": path.stat().st_size / 1e6, "write_s": time.monotonic() - started}


# -- parts, each in a process of its own -----------------------------------------------------------------------------


def nothing(context: RunContext) -> None:
    """The libraries alone."""


def optimize(context: RunContext) -> None:
    """The start states of the stage `optimize`."""
    starts = starts_of(context.episodes("collect"))
    assert len({start.frames[0, 0, 0, 0] for start in starts}) == min(len(starts), 256)


def windows(context: RunContext) -> None:
    """A batch of an alignment, drawn from all episodes for training."""
    config = context.config
    train, _ = context.collected()
    sampler = WindowSampler(
        train.frames, train.actions, train.lengths, config.world_model.context_frames, config.rollout.chunk_length
    )
    sampler.draw(NUM_WINDOWS, generator_for(0, "memory"))


def evaluate(context: RunContext) -> None:
    """The real episodes and the videos of one policy in the stage `evaluate`."""
    config = context.config
    environment = LargePocket(config.environment.horizon)
    torch.manual_seed(0)
    settings = TinyPolicyHFConfig(
        width=32,
        num_layers=1,
        num_heads=2,
        patch_size=32,
        frame_size=SIZE,
        chunk_length=config.rollout.chunk_length,
        vocabulary=vocabulary_of(environment.instructions),
    )
    seeds = start_seeds("evaluate", config.evaluation.num_starts, config.seed)
    key = (config.seed, "evaluate")
    _, videos = rollout_outcomes(TinyPolicy(settings).eval(), environment, seeds, config.evaluation.temperature, key)
    save_videos(context, "base", videos)


PARTS: dict[str, Callable[[RunContext], None]] = {
    "nothing": nothing,
    "optimize": optimize,
    "windows": windows,
    "evaluate": evaluate,
}


def measure(out: Path, part: str) -> dict[str, float]:
    """Run one part here: peak resident memory of this process so far, and seconds."""
    with RunFolder.open(out, config_of_run()) as folder:
        context = context_of(folder)
        started = time.monotonic()
        PARTS[part](context)
        seconds = time.monotonic() - started
    return {"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "seconds": seconds}


def measure_all(out: Path, num: int) -> dict[str, dict[str, Any]]:
    with RunFolder.open(out, config_of_run()) as folder:
        written = write_file(context_of(folder), num)
    figures: dict[str, dict[str, Any]] = {
        "frames": {"value": written["frames_gb"], "unit": f"GB, uncompressed, of {num} episodes"},
        "file": {"value": written["file_mb"], "unit": "MB, frames of one grey each"},
        "write": {"value": written["write_s"], "unit": "s"},
    }
    for part in PARTS:
        command = [sys.executable, "-m", "benchmarks.memory", "--out", str(out), "--part", part]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        bar = "" if part == "nothing" else f" (bar: {BAR_GIB:g})"
        figures[f"{part}_peak"] = {"value": result["gib"], "unit": f"GiB resident, whole process{bar}"}
        figures[f"{part}_time"] = {"value": result["seconds"], "unit": "s"}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=NUM_EPISODES)
    parser.add_argument("--part", choices=PARTS, help="measure one part in this process")
    parser.add_argument("--out", type=Path, help="run folder of --part")
    args = parser.parse_args()
    if args.part:
        print(json.dumps(measure(args.out, args.part)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure_all(Path(scratch) / "run", args.episodes)
    for name, figure in figures.items():
        print(f"{name}: {figure['value']:.4g} {figure['unit']}")
    print(write_results("memory", figures, " ".join(["python -m benchmarks.memory", *sys.argv[1:]])))


if __name__ == "__main__":
    main()
