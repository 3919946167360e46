"""Success against latency, with and without real-time chunking, in a simulator that goes on while it waits.

A tick is a step of the scene. A chunk that is asked for in tick t is there in the first tick that begins `latency` later. It
is asked for as many ticks ahead as an answer takes, and `overlap` ticks before that, which are what there is to blend. A
tick without an action holds the gripper where it is, and is a step of the episode like any other. Nothing sleeps: time is
counted in ticks, so the same seeds give the same episodes on any machine. The broker is the client's own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch

from learners.supervised.cloning import clone_policy
from wmpo_client.broker import ChunkPlan
from wmpo_client.served_policy import Chunk
from wmpo_ray.config.run import CloningConfig
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.core.statistics import wilson_interval
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.environments.pocket.geometry import FRAME_SIZE
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.rollout.evaluation import rollout_expert

LATENCIES_MS = (0, 50, 100, 250)
RATE_HZ = 20
CHUNK = 8  # of 0.4 s: longer than every latency
HORIZON = 32
NUM_DEMOS = 60  # as the demo's base policy
SEEDS = (0, 1)  # of the policies
WAYS = (("wait", 0), ("switch", 0), ("switch", 2), ("blend", 2))  # modes of the broker, and ticks of overlap


class Played(NamedTuple):
    """Of each scene [N]."""

    success: np.ndarray
    num_ticks: np.ndarray  # until success, or all
    num_held: np.ndarray  # of them without an action


def base_policy(seed: int) -> TinyPolicy:
    """A policy cloned from demonstrations as the demo's is, with chunks of `CHUNK`."""
    env = PocketEnvironment(HORIZON)
    demos = rollout_expert(env, start_seeds("demos", NUM_DEMOS, seed), 0.2, (seed, "demos"))
    torch.manual_seed(seed)
    policy = TinyPolicy(
        TinyPolicyHFConfig(patch_size=8, chunk_length=CHUNK, vocabulary=vocabulary_of(env.instructions))
    )
    clone_policy(policy, demos, CloningConfig(), seed)
    return policy.eval()


@torch.no_grad()
def play(policy: TinyPolicy, seeds: np.ndarray, mode: str, overlap: int, delay: int, seed: int) -> Played:
    """One episode for each start; delay: ticks from a question to its answer."""
    env = PocketEnvironment(HORIZON)
    env.reset(seeds, render=False)
    plans = [ChunkPlan(mode, max(1, delay + overlap)) for _ in seeds]
    coming: dict[int, list[tuple[int, int, Chunk]]] = defaultdict(list)
    asked, held = np.zeros(len(seeds), np.int64), np.zeros(len(seeds), np.int64)
    for tick in range(HORIZON):
        take(plans, coming.pop(tick, []))
        asking = [i for i, plan in enumerate(plans) if plan.asks and not env.terminated[i]]
        if asking:
            asked[asking] += 1
            chosen = [seed_for(seed, "real time", int(seeds[i]), int(asked[i])) for i in asking]
            frames, texts = env.render()[asking], [env.instruction[i] for i in asking]
            actions = policy.act(Observation.of(frames, texts), 1.0, chosen).actions.numpy()
            coming[tick + delay] += [(i, plans[i].ask(), Chunk(actions[n], 0, "")) for n, i in enumerate(asking)]
        take(plans, coming.pop(tick, []))
        made = still(env)
        for i, plan in enumerate(plans):
            due = plan.next()
            if due is not None:
                made[i] = due.action
            else:
                held[i] += not env.terminated[i]
        env.advance(made)
    return Played(env.success.copy(), env.num_steps.copy(), held)


def take(plans: list[ChunkPlan], arrived: list[tuple[int, int, Chunk]]) -> None:
    for scene, asked_at, chunk in arrived:
        plans[scene].take(asked_at, chunk)


def still(env: PocketEnvironment) -> np.ndarray:
    """Actions [N, 3] that leave gripper and grip as they are."""
    half = FRAME_SIZE / 2
    grip = np.where(env.closed, 1.0, -1.0)[:, None]
    return np.concatenate([(env.gripper - half) / half, grip], 1).astype(np.float32)


def ticks_of(latency_ms: float) -> int:
    return math.ceil(latency_ms * RATE_HZ / 1000)


def real_time(num: int) -> dict[str, dict[str, Any]]:
    """Figures for each of `WAYS` and each latency, over `num` starts for each of the policies."""
    torch.set_num_threads(1)
    played = defaultdict[str, list[Played]](list)
    delays = {}
    for seed in SEEDS:
        policy, starts = base_policy(seed), start_seeds("evaluate", num, seed)
        for mode, overlap in WAYS:
            for latency in LATENCIES_MS:
                name = f"success_{mode}_{latency}ms" + (f"_overlap_{overlap}" if overlap else "")
                delays[name] = ticks_of(latency)
                played[name].append(play(policy, starts, mode, overlap, delays[name], seed))
    return {name: figure(each, delays[name]) for name, each in played.items()}


def figure(played: list[Played], delay: int) -> dict[str, Any]:
    success = np.concatenate([each.success for each in played])
    ticks, held = (np.concatenate([getattr(each, name) for each in played]) for name in ("num_ticks", "num_held"))
    by_policy = ", ".join(f"{each.success.mean():.3f}" for each in played)
    return {
        "value": float(success.mean()),
        "interval": list(wilson_interval(int(success.sum()), len(success))),
        "seeds": list(SEEDS),
        "unit": f"of {len(success)} episodes within {HORIZON} ticks of {1000 // RATE_HZ} ms, chunks of {CHUNK}, an answer after "
        f"{delay} ticks; by policy {by_policy}; {held.mean():.1f} of {ticks.mean():.1f} ticks held",
    }
