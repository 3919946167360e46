"""How long a robot waits beyond the policy's own time, and what is left of a policy's throughput with many of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.robots.small_server import policy_of, small_server
from wmpo_client.served_policy import Seen, ServedPolicy
from wmpo_client.server_connection import Address, Connection
from wmpo_ray.core.observations import Observation
from wmpo_ray.environments.pocket.env import INSTRUCTIONS

SIDE = 256
NUM_ROBOTS = 64
WIDE = 512  # width of the policy that 64 robots ask: enough work for a batch


def latency(folder: Path, num: int) -> dict[str, dict[str, Any]]:
    """Round trip minus the policy's own time, of one robot."""
    with small_server(folder, SIDE) as target:
        policy = ServedPolicy(Connection(Address(target)))
        rng = np.random.default_rng(0)
        frames = [rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8) for _ in range(8)]
        beyond = []
        for index in range(num + 20):
            seen = Seen({"main": frames[index % 8]}, INSTRUCTIONS[0])
            began = time.perf_counter()
            chunk = policy.act(seen)
            beyond.append(1000 * (time.perf_counter() - began) - chunk.policy_ms)
    beyond = beyond[20:]
    unit = f"ms beyond the policy's own time, one raw {SIDE}x{SIDE} frame over loopback, {num} acts"
    return {
        "act_overhead_p50_ms": {"value": float(np.percentile(beyond, 50)), "unit": unit},
        "act_overhead_p99_ms": {"value": float(np.percentile(beyond, 99)), "unit": unit},
    }


def throughput(folder: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """Chunks a second that 64 robots get, against those that the policy makes in batches of 64, before and after."""
    alone = [chunks_alone(seconds / 3)]
    with small_server(folder, SIDE, WIDE) as target:
        command = [
            sys.executable,
            "-m",
            "benchmarks.robots.many_robots",
            target,
            str(NUM_ROBOTS),
            str(seconds),
            str(SIDE),
        ]
        done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    alone.append(chunks_alone(seconds / 3))
    served, bar = done["answers"] / done["seconds"], float(np.mean(alone))
    unit = f"of the {bar:.0f} chunks a second of the policy alone (before {alone[0]:.0f}, after {alone[1]:.0f})"
    return {
        "batched_throughput_ratio": {
            "value": served / bar,
            "unit": f"{unit}; {NUM_ROBOTS} robots in another process on the same cores, raw {SIDE}x{SIDE} frames",
        },
        "served_chunks_per_s": {"value": served, "unit": f"chunks a second; the fewest of a robot {done['fewest']}"},
    }


@torch.no_grad()
def chunks_alone(seconds: float) -> float:
    torch.set_num_threads(1)  # as a server's
    policy = policy_of(SIDE, WIDE)
    frames = np.stack([np.full((SIDE, SIDE, 3), index, np.uint8) for index in range(NUM_ROBOTS)])
    observation = Observation.of(frames, [INSTRUCTIONS[0]] * NUM_ROBOTS)
    policy.act(observation, 1.0, list(range(NUM_ROBOTS)))
    began, made = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        policy.act(observation, 1.0, list(range(NUM_ROBOTS)))
        made += NUM_ROBOTS
    return made / (time.perf_counter() - began)
