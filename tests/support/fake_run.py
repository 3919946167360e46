"""A plausible run folder: metrics drawn from a seed, videos from the embedded environment."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.fake_live import STAGES, fake_trace, write_trace
from wmpo_ray.environments.pocket.env import PocketEnvironment

HORIZON = 32
NUM_VIDEOS = {"side_by_side": 3, "base": 2, "final": 2}
GATE = {
    "label_agreement": 0.914,
    "f1": 0.897,
    "grasp_agreement": 0.953,
    "placement_agreement": 0.918,
    "imagined_success": 0.398,
    "real_success": 0.422,
    "false_positives": 8,
    "false_negatives": 14,
    "num": 256,
    "passed": True,
    "bounds": {
        "min_label_agreement": 0.85,
        "min_f1": 0.85,
        "min_event_agreement": 0.85,
        "max_success_gap": 0.12,
    },
}
RELIABILITY = {
    "calibration_error": 0.0312,
    "reliability_curve": [[0.011, 0.024, 82], [0.13, 0.25, 8], [0.36, 0.4, 5], [0.71, 0.6, 5], [0.96, 0.973, 112]],
    "false_positive_rate": 0.053,
    "false_positive_bound": 0.107,
    "num_failures": 95,
}
EVALUATE = {
    "failures_base": {"miss": 0.471, "jam": 0.193, "drop": 0.049, "wrong_pocket": 0.168},
    "failures_final": {"miss": 0.312, "jam": 0.143, "drop": 0.037, "wrong_pocket": 0.090},
    "failed_attempts_base": 0.71,
    "recovered_base": 0.268,
    "failed_attempts_final": 0.64,
    "recovered_final": 0.512,
}


def fake_summary() -> dict[str, Any]:
    seconds = {"demos": 1.4, "policy": 11.8, "collect": 2.6, "world-model": 61.3, "reward-model": 14.2, "gate": 9.7}
    seconds |= {"optimize": 262.9, "evaluate": 8.1}
    metrics: dict[str, dict[str, Any]] = {stage: {} for stage in seconds}
    metrics["demos"] = {"num_trajectories": 60, "expert_success": 1.0}
    metrics["collect"] = {"failures": {"miss": 0.47, "jam": 0.19, "drop": 0.05, "wrong_pocket": 0.17}}
    metrics["world-model"]["psnr_per_frame_db"] = {
        "before": [34.1 - 9.5 * (1 - math.exp(-i / 12)) + 0.4 * math.sin(i) for i in range(HORIZON)],
        "after": [36.0 - 7.1 * (1 - math.exp(-i / 12)) + 0.3 * math.sin(i) for i in range(HORIZON)],
    }
    curve = []
    for i in range(1, 20):
        t = i / 20
        precision, recall = 0.86 + 0.13 * t**0.5, 0.999 - 0.35 * t**6
        f1 = 2 * precision * recall / (precision + recall)
        curve.append({"threshold": t, "f1": f1, "precision": precision, "recall": recall})
    metrics["reward-model"] = {"f1": 0.9791, "threshold": 0.6, "threshold_curve": curve, **deepcopy(RELIABILITY)}
    metrics["gate"] = deepcopy(GATE)
    metrics["evaluate"] = deepcopy(EVALUATE)
    return {
        "name": "demo",
        "seed": 3,
        "config_hash": "9f2c61d04be7a7310f6f2f0f9d7d3c85",
        "versions": {"wmpo-ray": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "python": "3.11.9"},
        "machine": "2 CPU cores, 16 GB, no GPU",
        "recipe": {"kind": "wmpo", "stages": list(STAGES)},
        "stages": {stage: {"seconds": seconds[stage], "metrics": metrics[stage]} for stage in seconds},
        "result": {
            "base_success": {"value": 0.4102, "low": 0.3684, "high": 0.4533, "num": 512},
            "final_success": {"value": 0.5820, "low": 0.5389, "high": 0.6240, "num": 512},
            "gain_points": 17.18,
        },
    }


def fake_metrics(num_updates: int = 15) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    lines = []
    for update in range(1, num_updates + 1):
        rise = 1 - math.exp(-update / 6)
        imagined = 0.41 + 0.31 * rise + rng.normal(0, 0.012)
        uniform, stale, surplus = int(9 + 14 * rise + rng.integers(4)), int(rng.integers(2)), int(rng.integers(6))
        line = {
            "update": update,
            "imagined/success_rate": imagined,
            "imagined/verified_success_rate": imagined - 0.05 - 0.02 * rise,
            "queue/admit": 64,
            "queue/uniform": uniform,
            "queue/stale": stale,
            "queue/surplus": surplus,
            "policy/clip_fraction": 0.31 - 0.12 * rise + rng.normal(0, 0.015),
            "policy/ratio_mean": 1 + rng.normal(0, 0.004),
            "policy/grad_norm": 0.9 + 0.4 * rng.random(),
            "policy/logprob_distance": 2.1e-6 * (1 + rng.random()),
            "policy/skipped_steps": 0,
            "time/imagine_s": 13.1 + rng.normal(0, 0.6),
            "time/score_s": 1.3,
            "time/update_s": 2.4 + rng.normal(0, 0.1),
            "time/broadcast_s": 0.12,
        }
        if update % 5 == 0:
            real = 0.41 + 0.19 * rise + rng.normal(0, 0.01)
            line |= {"real/success_rate": real, "real/success_low": real - 0.085, "real/success_high": real + 0.085}
            line["real/label_agreement"] = 0.91 - 0.06 * rise
        lines.append(line)
    return lines


def record(seed: int, num: int, noise: float, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Expert episodes with noisy targets (in pixels): frames [num, T+1, H, W, 3], success, lengths, instructions."""
    environment, rng = PocketEnvironment(steps), np.random.default_rng(seed)
    frames = [environment.reset(range(seed, seed + num))]
    for _ in range(steps):
        frames.append(environment.step(environment.expert_action(rng, noise))[0])
    return np.stack(frames, 1), environment.success, environment.num_steps, environment.instruction


def write_videos(folder: Path, num: dict[str, int], steps: int = 14, instructions: list[str] | None = None) -> None:
    """The three video files; `instructions` replaces the environment's where given, one for all."""
    folder.mkdir(parents=True)
    for name, count in num.items():
        frames, success, lengths, spoken = record(10 * len(name), count, 0.9 if name == "final" else 1.7, steps)
        told = np.array(json.dumps(instructions * count if instructions else spoken))
        if name != "side_by_side":
            np.savez_compressed(
                folder / f"{name}.npz", frames=frames, success=success, lengths=lengths, instructions=told
            )
            continue
        blur = np.random.default_rng(1).normal(0, 4, frames.shape)
        imagined_success = success.copy()
        imagined_success[-1] = ~success[-1]
        np.savez_compressed(
            folder / f"{name}.npz",
            real=frames,
            imagined=np.clip(frames + blur, 0, 255).astype(np.uint8),
            real_success=success,
            imagined_success=imagined_success,
            lengths=lengths,
            instructions=told,
        )


def write_fake_run(folder: Path, num_videos: dict[str, int] = NUM_VIDEOS, steps: int = 14) -> Path:
    """Write `summary.json`, `metrics.jsonl`, a curve, `videos/` and the trace of one update into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(fake_summary()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in fake_metrics()))
    (folder / "curves").mkdir()
    losses = ({"step": step, "loss": 2.2 * math.exp(-step / 90) + 0.4} for step in range(10, 301, 10))
    (folder / "curves" / "policy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    write_videos(folder / "videos", num_videos, steps)
    write_trace(folder, fake_trace())
    return folder
