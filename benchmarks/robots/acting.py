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

from benchmarks.robots.small_server import policy_of, processor_seconds, server_process, small_server
from wmpo_client.served_policy import Seen, ServedPolicy
from wmpo_client.server_connection import Address, Connection
from wmpo_ray.core.observations import Observation
from wmpo_ray.environments.pocket.env import INSTRUCTIONS

SIDE = 256
NUM_ROBOTS = 64
ROUNDS = 5  # the machine may be busy with other things: both are measured in turns
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
    """Chunks that 64 robots get for a second of the server's processor time, against those that the policy makes alone.

    Processor time, because on a machine that others use too the seconds of the clock say who else was busy. All that the
    server does counts: messages, batching and answers beside the policy.
    """
    alone, served, rates, fewest = [], [], [], []
    with server_process(folder, SIDE, WIDE) as (target, pid):
        command = [sys.executable, "-m", "benchmarks.robots.many_robots", target, str(NUM_ROBOTS)]
        for _ in range(ROUNDS):
            alone.append(chunks_alone(seconds / ROUNDS))
            began = processor_seconds(pid)
            answer = subprocess.run(
                [*command, str(seconds / ROUNDS), str(SIDE)], capture_output=True, text=True, check=True
            )
            done = json.loads(answer.stdout)
            served.append(done["all"] / (processor_seconds(pid) - began))
            rates.append(done["answers"] / done["seconds"])
            fewest.append(done["fewest"])
    ratios = sorted(one / other for one, other in zip(served, alone, strict=True))
    unit = f"of the policy alone in batches of {NUM_ROBOTS}, chunks for a second of processor time, median of {ROUNDS} turns"
    each = "; ".join(f"{one:.1f} of {other:.1f}" for one, other in zip(served, alone, strict=True))
    return {
        "batched_throughput_ratio": {
            "value": ratios[ROUNDS // 2],
            "interval": [ratios[0], ratios[-1]],
            "unit": f"{unit}; {NUM_ROBOTS} robots in another process, raw {SIDE}x{SIDE} frames; {each}",
        },
        "served_chunks_per_s": {
            "value": float(np.mean(rates)),
            "unit": f"chunks a second of the clock; the fewest of a robot in a turn {min(fewest)}",
        },
    }


@torch.no_grad()
def chunks_alone(seconds: float) -> float:
    """For a second of processor time."""
    torch.set_num_threads(1)  # as a server's
    policy = policy_of(SIDE, WIDE)
    frames = np.stack([np.full((SIDE, SIDE, 3), index, np.uint8) for index in range(NUM_ROBOTS)])
    observation = Observation.of(frames, [INSTRUCTIONS[0]] * NUM_ROBOTS)
    policy.act(observation, 1.0, list(range(NUM_ROBOTS)))
    ended, began, made = time.perf_counter() + seconds, time.process_time(), 0
    while time.perf_counter() < ended:
        policy.act(observation, 1.0, list(range(NUM_ROBOTS)))
        made += NUM_ROBOTS
    return made / (time.process_time() - began)
