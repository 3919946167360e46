"""Kinds of reward model on the embedded task: benchmarks/results/reward_kinds.json.

    python -m benchmarks.reward_kinds [--seeds 0 2] [--kinds frame ...] [--small] [--timed] [--bases DIR ...] [--out DIR]

For each seed the demo's stages up to the world model are made once; each kind goes on from a copy of them, up to the gate.
Told of each kind: F1, calibration error and false positives on held-out real episodes, agreement of its labels in
imagination, and how many videos it judges in a second on one core. What is there in `--out` is kept; a copy of a run that
was made up to the world model may stand for each seed (`--bases`). `--small`: the smoke preset, to see that it works.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import merge_results
from wmpo_ray.data.store import load_episodes
from wmpo_ray.registry import load_reward_model
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.summary_file import SUMMARY

ROOT = Path(__file__).parents[1]
FRAME = ["reward.kind=frame", "reward.network.patch_size=4"]
WITHOUT = "reward.progress_weight=0"
KINDS: dict[str, list[str]] = {
    "videomae": [],
    "frame": [*FRAME, "reward.progress_weight=1"],
    "frame_without_progress": [*FRAME, WITHOUT],
    "frame_without_progress_2_in_a_row": [*FRAME, WITHOUT, "reward.clip_length=2"],
    "frame_without_progress_patch_8": ["reward.kind=frame", "reward.network.patch_size=8", WITHOUT],
}
NUM_TIMED = 64
# Name of a figure -> stage, path within its metrics, unit.
FIGURES = {
    "f1": ("reward-model", ("f1",), "F1 on held-out real episodes"),
    "calibration_error": ("reward-model", ("calibration_error",), "expected calibration error there"),
    "label_agreement": ("gate", ("label_agreement",), "share of replays in imagination whose label is the real one"),
    "order_of_progress": ("reward-model", ("progress", "order_correlation"), "value-order correlation, real successes"),
}


def made(folder: Path, preset: str, until: str, settings: Sequence[str]) -> RunFolder:
    """A run up to a stage, gone on with in a process of its own where it is not. Raises SystemExit where that fails."""
    if (folder / SUMMARY).is_file() and RunFolder(folder).is_done(until):
        return RunFolder(folder)
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "wmpo_ray", "run", preset, "--serial", "--force", "--resume", "--quiet"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "a") as log:
        command += ["--until", until, "--out", str(folder), *words]
        if code := subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False).returncode:
            raise SystemExit(f"{folder.name} ended with {code}; see {folder.with_suffix('.log')}")
    return RunFolder(folder)


def measured(base: Path, folder: Path, preset: str, settings: Sequence[str], timed: bool) -> dict[str, float]:
    """The figures of one kind and seed."""
    if not folder.exists():
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("report", "videos"))
        (folder / "videos").mkdir()
    run = made(folder, preset, "gate", settings)
    found: dict[str, float] = {"videos_per_s": videos_per_second(run)} if timed else {}
    for name, (stage, path, _) in FIGURES.items():
        value: Any = run.metrics(stage)
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[name] = float(value)
    judged = run.metrics("reward-model")
    failures = round(judged["num"] * (1 - judged["true_rate"]))
    return found | {"false_positive_rate": judged["false_positives"] / failures}


def videos_per_second(run: RunFolder) -> float:
    torch.set_num_threads(1)
    model = load_reward_model(run.config, str(run.models / "reward-model"), device="cpu")
    episodes = load_episodes(run.path / "trajectories" / "held-out.parquet").rows(slice(NUM_TIMED))
    frames, times = np.asarray(episodes.frames), []
    for _ in range(3):
        started = time.process_time()
        model.probabilities(frames, episodes.instructions)
        times.append(time.process_time() - started)
    return len(episodes) / min(times)


def figures_of(by_seed: dict[int, dict[str, float]]) -> dict[str, dict[str, Any]]:
    units = {name: unit for name, (_, _, unit) in FIGURES.items()} | {
        "false_positive_rate": "share of the held-out failures that are called a success",
        "videos_per_s": "videos judged in a second of one core",
    }
    found = {}
    for name, unit in units.items():
        values = {seed: one[name] for seed, one in by_seed.items() if name in one}
        if values:
            each = ", ".join(f"{value:.3g}" for value in values.values())
            value = round(float(np.mean(list(values.values()))), 4)
            found[name] = {"value": value, "unit": f"{unit}; each seed: {each}", "seeds": list(values)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--timed", action="store_true")
    parser.add_argument("--bases", type=Path, nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "reward-kinds")
    options = parser.parse_args()
    preset, out = ("smoke", options.out / "small") if options.small else ("demo", options.out)
    found: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in options.kinds}
    for i, seed in enumerate(options.seeds):
        base = out / f"base-s{seed}"
        if not base.exists() and i < len(options.bases):
            shutil.copytree(options.bases[i], base)
        made(base, preset, "world-model", [f"seed={seed}"])
        for kind in options.kinds:
            folder = out / f"{kind}-s{seed}"
            found[kind][seed] = measured(base, folder, preset, [f"seed={seed}", *KINDS[kind]], options.timed)
            print(kind, seed, found[kind][seed], flush=True)
    words = f"--seeds {' '.join(map(str, options.seeds))}{' --small' if options.small else ''}"
    name = "reward_kinds_small" if options.small else "reward_kinds"
    for kind, by_seed in found.items():
        path = merge_results(
            name, kind, figures_of(by_seed), f"python -m benchmarks.reward_kinds {words} --kinds {kind}"
        )
    print(path)


if __name__ == "__main__":
    main()
