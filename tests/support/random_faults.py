"""What goes wrong in a random history on a simulated cluster, and the laws that hold all the same."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

from actors.rollout_actor import RolloutActor
from cluster.loop.ledger import Ledger, State
from cluster.loop.rollouts import Rollouts
from cluster.loop.team import ModelPaths, Team
from cluster.loop.train import TrainingLoop
from cluster.recipes.optimize import rollout_folders
from cluster.simulation.simulated_actors import SimulatedWorld
from cluster.simulation.simulated_parts import Call, Faults, Node, SimulatedActor
from cluster.simulation.simulated_runtime import SimulatedRuntime
from tests.support.random_histories import STARTS, History, expected, make_config

IDEMPOTENT = (
    "rollout",
    "score",
    "load_weights",
    "evaluate",
    "compare_labels",
    "weights",
    "save_policy",
    "update_part",
    "stage_weights",
)
MEAN_S = {
    "locate": 0.05,
    "__init__": 0.1,
    "rollout": 0.8,
    "score": 0.1,
    "load_weights": 0.05,
    "stage_weights": 0.05,
    "step_weights": 0.05,
    "update": 0.6,
    "update_part": 0.4,
}
HOPELESS_S = 2000.0  # a history that takes longer will not end


class DriverDied(BaseException):
    """Thrown through the main loop at some moment; nothing in it may catch this."""


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
        history.start_order,
        history.minibatch,
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
