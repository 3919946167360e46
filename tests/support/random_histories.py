"""Random histories of a small run: settings and faults drawn from a seed, and the result that follows from the settings."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace

import numpy as np

from cluster.simulation.simulated_actors import outcomes_of, rollout_of
from cluster.simulation.simulated_steps import digest_of, trained_digest
from wmpo_ray.algorithms.start_signal import by_signal
from wmpo_ray.config.run import Config
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import GroupRequest

FAULTS = {
    "heartbeat_every_s": 1.0,
    "heartbeat_timeout_s": 1.8,
    "stall_timeout_s": 6.0,
    "max_start_failures": 1000,
    "backoff_s": 0.1,
    "max_backoff_s": 0.4,
}
STARTS = [StartState(np.zeros((1, 2, 2, 3), np.uint8), "", seed) for seed in range(5)]


@dataclass
class History:
    """One drawn run: its settings and what goes wrong."""

    seed: int
    num_updates: int
    groups_per_update: int
    groups_per_request: int
    num_actors: int
    staleness: int
    speculation: float
    keep_rate: float
    every_updates: int
    payload: str
    spool: str
    num_strikes: int
    gap_s: float  # mean time between strikes
    disorder: float  # share of answers that are delayed, of calls that are doubled, ...
    is_elastic: bool
    num_driver_deaths: int
    world_judges: bool  # no reward worker has anything to do
    trajectories_per_request: int  # 0: those of whole groups
    fill_probability: float
    start_order: str
    slots: int  # with slots, requests are lined up
    stream: bool  # the learner works while the batch fills
    minibatch: int  # trajectories; groups have two
    max_crashes: int = 1000  # random deaths are not to be taken for the fault of a request
    poison: frozenset[tuple[int, int]] = frozenset()
    rng: random.Random = field(repr=False, default_factory=random.Random)


def draw(seed: int) -> History:
    rng = random.Random(seed)
    num_driver_deaths = rng.choice((1, 2)) if rng.random() < 0.12 else 0
    groups_per_request = rng.randint(1, 3)
    return History(
        seed=seed,
        num_updates=rng.choice((2, 2, 3)),
        groups_per_update=rng.randint(2, 3),
        groups_per_request=groups_per_request,
        num_actors=rng.randint(1, 6),
        staleness=rng.randint(0, 1),
        speculation=rng.choice((0.0, 0.0, 0.5)),
        keep_rate=rng.choice((0.5, 0.7, 0.9)),
        every_updates=rng.choice((1, 1, 2)),
        payload=rng.choice(("full", "delta")),
        spool=rng.choice(("none", "memory")) if not num_driver_deaths else rng.choice(("none", "file")),
        num_strikes=rng.choice((0, 1, 2, 4, 8)),
        gap_s=rng.uniform(0.3, 2.0),
        disorder=rng.choice((0.0, 0.05, 0.2)),
        is_elastic=rng.random() < 0.5,
        num_driver_deaths=num_driver_deaths,
        world_judges=rng.random() < 0.3,
        trajectories_per_request=rng.choice((0, 1, groups_per_request)),  # groups have two members
        fill_probability=rng.choice((0.0, 0.0, 0.5, 0.95)),
        start_order=rng.choice(("shuffled", "signal")),
        slots=rng.randint(0, 1),
        stream=rng.random() < 0.8,
        minibatch=rng.randint(1, 3),
        rng=rng,
    )


SETTINGS = (  # of a history, that its configuration depends on
    "num_updates",
    "groups_per_update",
    "groups_per_request",
    "num_actors",
    "staleness",
    "speculation",
    "every_updates",
    "payload",
    "stream",
    "minibatch",
    "max_crashes",
    "trajectories_per_request",
    "fill_probability",
    "start_order",
    "slots",
)


def make_config(h: History) -> Config:
    return _config(h.seed % 7, *(getattr(h, name) for name in SETTINGS))


@cache
def _config(seed: int, *values) -> Config:
    h = SimpleNamespace(**dict(zip(SETTINGS, values, strict=True)))
    return Config.model_validate(
        {
            "seed": seed,
            "environment": {"horizon": 8},
            "rollout": {
                "group_size": 2,
                "groups_per_update": h.groups_per_update,
                "groups_per_request": h.groups_per_request,
                "trajectories_per_request": h.trajectories_per_request,
                "speculation": h.speculation,
                "start_order": h.start_order,
                "slots": h.slots,
            },
            "grpo": {"num_updates": h.num_updates, "minibatch_trajectories": h.minibatch},
            "filter": {"max_staleness": h.staleness, "fill_probability": h.fill_probability},
            "evaluation": {"every_updates": 2, "num_starts_on_the_way": 2},
            "cluster": {"imagination_actors": h.num_actors, "stream_updates": h.stream},
            "checkpoint": {"every_updates": h.every_updates},
            "weights": {"payload": h.payload, "per_step": h.payload == "delta" and seed % 2 == 0},
            "faults": {**FAULTS, "max_crashes": h.max_crashes},
        }
    )


@cache
def expected(
    seed: int,
    num_updates: int,
    groups_per_update: int,
    staleness: int,
    keep_rate: float,
    poison: frozenset = frozenset(),
    start_order: str = "shuffled",
    minibatch: int = 2,
) -> tuple[str, list[list[tuple[int, int]]]]:
    """Final digest and keys of the trained groups of each update, from the algorithm's definition alone."""
    digests, trained, outcomes = [digest_of("untrained", seed)], [], []
    for update in range(num_updates):
        weights = digests[max(0, update - staleness)]
        known = [outcome for made, outcome in outcomes if made < max(0, update - staleness)]
        order = _order(seed, update, known if start_order == "signal" else [])
        batch: list = []
        attempt = 0
        while len(batch) < groups_per_update:
            key, index = (update, attempt), int(order[attempt % len(STARTS)])
            group = GroupRequest(*key, index, STARTS[index], 2, seed)
            rows = [rollout_of(group, member, weights) for member in range(2)]
            success = outcomes_of(rows, 2, keep_rate)
            if key not in poison:
                outcomes.append((update, (index, int(success.sum()), int((~success).sum()))))
            if key not in poison and 0 < success.sum() < len(rows):
                batch.append((rows, success))
            attempt += 1
        digests.append(trained_digest(digests[-1], batch, minibatch))
        trained.append([rows[0].key for rows, _ in batch])
    return digests[-1], trained


def _order(seed: int, update: int, outcomes: list) -> np.ndarray:
    shuffled = np.random.default_rng(seed_for(seed, "starts", update)).permutation(len(STARTS))
    return by_signal(shuffled, outcomes, 2)
