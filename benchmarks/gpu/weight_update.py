"""A weight update on its way: the learner encodes, a replica takes it; whole weights and what changed.

    python -m benchmarks.gpu.weight_update [--size full|small] [--changed 0.097] [--threads 8]

`--changed` is the share of bfloat16 weights that an update changes (`benchmarks/weight_delta.py` measures it).
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch

from benchmarks.gpu.measuring import Bench
from benchmarks.gpu.setups import config_of, make_policy
from wmpo_ray.config.cluster import WeightsConfig
from wmpo_ray.policies.weight_exchange import WeightEncoder, WeightReceiver
from wmpo_ray.policies.weight_payload import WeightPayload

DELTA = WeightsConfig(payload="delta", dtype="bfloat16")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--changed", type=float, default=0.097)
    parser.add_argument("--threads", type=int, default=8)


@torch.no_grad()
def change(policy: Any, share: float) -> None:
    """Flip the last bit of a random share of the bfloat16 weights."""
    for parameter in policy.parameters():
        bits = parameter.view(-1).view(torch.int16)
        bits ^= (torch.rand(bits.shape, device=bits.device) < share).to(torch.int16)


def timed(bench: Bench, call) -> tuple[Any, float]:
    bench.synchronize()
    started = time.perf_counter()
    result = call()
    bench.synchronize()
    return result, time.perf_counter() - started


def load(bench: Bench, receiver: WeightReceiver, payload: WeightPayload, key: str) -> None:
    version, seconds = timed(bench, lambda: receiver.load(payload))
    assert version == payload.version, "the replica holds other weights than were sent"
    bench.add(f"{key}_bytes", payload.nbytes, "bytes")
    bench.add(f"{key}_load", seconds, "s, until its hash is known")


def main() -> None:
    bench = Bench("weight_update", __doc__, options)
    share, threads = bench.arguments.changed, bench.arguments.threads
    config = config_of(bench.size, bench.folder)
    policy = make_policy(config, bench.device, torch.bfloat16)
    replica = copy.deepcopy(policy)
    encoder, receiver = WeightEncoder(policy, DELTA, (), threads), WeightReceiver(replica, threads)
    (_, full, _), seconds = timed(bench, lambda: encoder.encode(0))
    bench.add("full_encode", seconds, f"s, {threads} threads")
    load(bench, receiver, full, "full")
    change(policy, share)
    (_, _, delta), seconds = timed(bench, lambda: encoder.encode(1))
    assert delta is not None
    bench.add("delta_encode", seconds, f"s, {share:.2%} of the weights changed")
    load(bench, receiver, delta, "delta")
    bench.add("delta_share", delta.nbytes / full.nbytes, "of the full payload's bytes")
    bench.save()


if __name__ == "__main__":
    main()
