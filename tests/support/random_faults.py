"""Random histories of a small run on a simulated cluster, and what each of them must come to."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from actors.rollout_actor import RolloutActor
from cluster.loop.ledger import Ledger, State
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import ModelPaths, Team
from cluster.loop.train import TrainingLoop
from cluster.recipes.optimize import rollout_folders
from cluster.simulation.simulated_actors import SimulatedWorld, digest_of, outcomes_of, rollouts_of, trained_digest
from cluster.simulation.simulated_parts import Call, Faults, Node, SimulatedActor
from cluster.simulation.simulated_runtime import SimulatedRuntime
from wmpo_ray.config.run import Config
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import GroupRequest, StartState

IDEMPOTENT = ("rollout", "score", "load_weights", "evaluate", "compare_labels", "weights", "save_policy")
STARTS = [StartState(np.zeros((1, 2, 2, 3), np.uint8), "", seed) for seed in range(5)]
MEAN_S = {"locate": 0.05, "__init__": 0.1, "rollout": 0.8, "score": 0.1, "load_weights": 0.05, "update": 0.6}
HOPELESS_S = 2000.0  # a history that takes longer will not end


class DriverDied(BaseException):
    """Thrown through the main loop at some moment; nothing in it may catch this."""


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
    max_crashes: int = 1000  # random deaths are not to be taken for the fault of a request
    poison: frozenset[tuple[int, int]] = frozenset()
    rng: random.Random = field(repr=False, default_factory=random.Random)


def draw(seed: int) -> History:
    rng = random.Random(seed)
    num_driver_deaths = rng.choice((1, 2)) if rng.random() < 0.12 else 0
    return History(
        seed=seed,
        num_updates=rng.choice((2, 2, 3)),
        groups_per_update=rng.randint(2, 3),
        groups_per_request=rng.randint(1, 3),
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
        rng=rng,
    )


@cache
def config_of(*settings) -> Config:
    updates, groups, per_request, actors, staleness, speculation, every, payload, max_crashes, seed = settings
    return Config.model_validate(
        {
            "seed": seed,
            "environment": {"horizon": 8},
            "rollout": {
                "group_size": 2,
                "groups_per_update": groups,
                "groups_per_request": per_request,
                "speculation": speculation,
            },
            "grpo": {"num_updates": updates, "minibatch_trajectories": 2},
            "filter": {"max_staleness": staleness},
            "evaluation": {"every_updates": 2, "num_starts_on_the_way": 2},
            "cluster": {"imagination_actors": actors},
            "checkpoint": {"every_updates": every},
            "weights": {"payload": payload},
            "faults": {
                "heartbeat_every_s": 1.0,
                "heartbeat_timeout_s": 1.8,
                "stall_timeout_s": 6.0,
                "max_start_failures": 1000,
                "backoff_s": 0.1,
                "max_backoff_s": 0.4,
                "max_crashes": max_crashes,
            },
        }
    )


def make_config(h: History) -> Config:
    return config_of(
        h.num_updates,
        h.groups_per_update,
        h.groups_per_request,
        h.num_actors,
        h.staleness,
        h.speculation,
        h.every_updates,
        h.payload,
        h.max_crashes,
        h.seed % 7,
    )


@cache
def expected(
    seed: int,
    num_updates: int,
    groups_per_update: int,
    staleness: int,
    keep_rate: float,
    poison: frozenset = frozenset(),
) -> tuple[str, list[list[tuple[int, int]]]]:
    """Final digest and keys of the trained groups of each update, from the algorithm's definition alone."""
    digests, trained = [digest_of("untrained", seed)], []
    for update in range(num_updates):
        weights = digests[max(0, update - staleness)]
        shuffled = np.random.default_rng(seed_for(seed, "starts", update)).permutation(len(STARTS))
        batch: list = []
        attempt = 0
        while len(batch) < groups_per_update:
            key, index = (update, attempt), int(shuffled[attempt % len(STARTS)])
            rows = rollouts_of(GroupRequest(*key, index, STARTS[index], 2, seed), weights)
            success = outcomes_of(rows, keep_rate)
            if key not in poison and 0 < success.sum() < len(rows):
                batch.append((rows, success))
            attempt += 1
        digests.append(trained_digest(digests[-1], batch))
        trained.append([rows[0].key for rows, _ in batch])
    return digests[-1], trained


def service_time(cls: str, method: str, rng: random.Random) -> float:
    return MEAN_S.get(method, 0.1) * rng.uniform(0.5, 1.5)


class RandomFaults(Faults):
    """Deaths of actors and nodes, stops, preemptions; answers that are delayed, doubled, late or gone."""

    def __init__(self, history: History, has_spool: bool):
        self.history, self.rng, self.has_spool = history, history.rng, has_spool
        self.num_left = history.num_strikes

    def begin(self, runtime: SimulatedRuntime) -> None:
        self.runtime = runtime
        self._arm()

    def _arm(self) -> None:
        if self.num_left:
            self.num_left -= 1
            self.runtime.after(self.rng.expovariate(1 / self.history.gap_s), self._strike)

    def _strike(self) -> None:
        self._arm()
        actors = [actor for actor in self.runtime.actors if actor.instance is not None]
        if not actors:
            return
        victim = self.rng.choice(actors)
        learners = [actor for actor in actors if actor.name == "learner-0"]
        kind = self.rng.randrange(6)
        if kind == 0:
            self.runtime.end(victim)
        elif kind == 1:
            self.runtime.stop_for_a_while(victim, None)
        elif kind == 2:
            self.runtime.stop_for_a_while(victim, self.rng.uniform(0.2, 4))
        elif kind == 3:
            self.runtime.lose_node(victim.node)
        elif kind == 4:
            self._drain(victim)
        else:
            for learner in learners:
                self.runtime.end(learner)

    def _drain(self, victim: SimulatedActor) -> None:
        node = victim.node
        if not node.is_lost and node.name not in self.runtime.draining:
            seconds = self.rng.uniform(1, 14)
            self.runtime.draining[node.name] = self.runtime.clock() + seconds
            self.runtime.after(seconds, self._take_away, node)

    def _take_away(self, node: Node) -> None:
        if not node.is_lost:
            self.runtime.lose_node(node)

    def _now_and_then(self) -> bool:
        return self.rng.random() < self.history.disorder

    def transport_s(self, call: Call) -> float | None:
        if not self._now_and_then():
            return 0.0
        return None if self.rng.random() < 0.05 else self.rng.uniform(0, 1)

    def num_runs(self, call: Call) -> int:
        return 2 if call.method in IDEMPOTENT and self._now_and_then() else 1

    def takes_effect(self, call: Call) -> bool:
        return self.rng.random() < 0.5

    def late_s(self, call: Call) -> float | None:
        return self.rng.uniform(0, 2) if self.rng.random() < 0.5 else None

    def survives(self, call: Call, part: int) -> bool:
        if call.actor.cls is RolloutActor and part == 2 and not self.has_spool:
            return True  # a run whose disk is gone too cannot go on
        return part == 0 or self.rng.random() < 0.5


class NoLog:
    """The laws are about weights and the account, not about metrics."""

    def metrics(self, update: int, values: dict[str, float]) -> None: ...

    def restore(self, history: list[dict]) -> set[int]:
        return set()


class RandomTargets:
    """Stands in for measured rates: the wanted number of workers wanders."""

    def __init__(self, rng: random.Random, most: int):
        self.rng, self.most, self.last = rng, most, {"imagination": most, "reward": 1}

    def targets(self, has_work: bool = True) -> dict[str, int]:
        if self.rng.random() < 0.03:
            self.last = {"imagination": self.rng.randint(1, self.most), "reward": self.rng.randint(1, 2)}
        return self.last

    def rolled_out(self, num_groups: int, seconds: float) -> None: ...

    def scored(self, num_groups: int, seconds: float) -> None: ...

    def updated(self, num_settled: int, seconds: float) -> None: ...


class Life:
    """One driver, from its start to its end or death; `world` and `folder` outlive it."""

    def __init__(self, history: History, world: SimulatedWorld, folder: Path, is_last: bool, has_file: bool):
        self.history, self.is_last = history, is_last
        faults = RandomFaults(history, world.spool != "none")
        config = make_config(history)
        self.runtime = SimulatedRuntime(
            world.stand_ins(), service_time, history.rng.getrandbits(32), faults, num_nodes=2, at_wait=self.check
        )
        self.ledger = Ledger(folder / "ledger.jsonl" if has_file else None)
        paths = ModelPaths(folder, folder, None, folder, folder)
        team = Team(config, self.runtime, paths)
        if history.is_elastic:
            team.rates = RandomTargets(history.rng, history.num_actors)
        rollouts = Rollouts(config, team, self.ledger, *rollout_folders(folder))
        self.loop = TrainingLoop(config, team, STARTS, self.ledger, NoLog(), rollouts)
        if not is_last:
            self.runtime.after(history.rng.uniform(0, 5), self.die)

    def check(self) -> None:
        """What holds at every turn."""
        account = self.ledger.account()
        assert account.balances, account
        assert self.runtime.clock() < HOPELESS_S, f"does not end: {account}"

    def die(self) -> None:
        """kill -9 of the driver: its actors go with it, its last line may be on the disk in part."""
        for actor in list(self.runtime.actors):
            self.runtime.end(actor)
        unwritten = b"".join(self.ledger._unwritten)
        os.write(self.ledger._file, unwritten[: self.history.rng.randint(0, len(unwritten))])
        os.close(self.ledger._file)
        raise DriverDied


def run_history(history: History, folder: Path) -> Life:
    """Run it to its end, over as many drivers as it takes, and hold it to the laws; returns the last driver's life."""
    rng = history.rng
    world = SimulatedWorld(
        history.keep_rate,
        history.world_judges,
        history.spool,
        history.poison,
        damages_weights=lambda: rng.random() < 0.1 * history.disorder,
        damages_checkpoint=lambda: rng.random() < 0.5 * (history.num_strikes > 0),
    )
    for number in range(history.num_driver_deaths + 1):
        is_last = number == history.num_driver_deaths
        life = Life(history, world, folder, is_last, history.num_driver_deaths > 0)
        try:
            version = life.loop.run(str(folder / "policy"))
            break
        except DriverDied:
            continue
    digest, trained = expected(
        history.seed % 7,
        history.num_updates,
        history.groups_per_update,
        history.staleness,
        history.keep_rate,
        history.poison,
    )
    saved = world.checkpoints[history.num_updates]
    assert [list(keys) for keys in saved.trained] == trained
    assert version.digest == saved.digests[-1] == digest
    check_account(life, trained)
    life.ledger.close()
    life.loop.team.stop()
    return life


def check_account(life: Life, trained: list[list[tuple[int, int]]]) -> None:
    account = life.ledger.account()
    assert account.balances and account.in_flight == account.waiting == 0, account
    assert account.trained == sum(map(len, trained)), account
    done = (record for record in life.ledger.records.values() if record.state is State.TRAINED)
    by_update = Counter(record.facts["version"] for record in done)
    assert [by_update[update + 1] for update in range(len(trained))] == [len(keys) for keys in trained], by_update
    # Every answer was used, once, or was counted as late.
    assert life.runtime.num_answers == life.runtime.num_read + life.loop.crew.num_late
