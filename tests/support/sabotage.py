"""Actors that kill or stop themselves at chosen points, once for each point (or every time).

A point is a file in a folder that all processes see; its content is the number of the signal. It is renamed before the
signal is sent, so that whoever repeats the work gets through.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actors.reward_actor import RewardActor
from actors.rollout_actor import RolloutActor
from cluster.loop.team import actor_class
from learners.policy_learner import PolicyLearner
from wmpo_ray.config.roles import Role


class Plan:
    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def add(self, point: str, what: signal.Signals = signal.SIGKILL) -> None:
        (self.folder / point).write_text(str(int(what)))

    def always(self, point: str) -> None:
        (self.folder / f"always-{point}").write_text(str(int(signal.SIGKILL)))

    def reached(self, point: str) -> None:
        """Called by an actor at a point."""
        always = self.folder / f"always-{point}"
        if always.exists():
            os.kill(os.getpid(), int(always.read_text()))
        try:
            os.rename(self.folder / point, self.folder / f"done-{point}")
        except FileNotFoundError:
            return
        os.kill(os.getpid(), int((self.folder / f"done-{point}").read_text()))

    def note(self, what: str) -> None:
        (self.folder / f"note-{what}").touch()

    @property
    def left(self) -> list[str]:
        """Points that nobody came to."""
        return [p.name for p in self.folder.iterdir() if not p.name.startswith(("done-", "note-", "always-"))]

    def notes(self, prefix: str) -> list[str]:
        return [p.name for p in self.folder.glob(f"note-{prefix}*")]


def sabotage(monkeypatch: Any, plan: Plan) -> None:
    """Let the team place actors that keep to the plan."""
    monkeypatch.setattr("cluster.loop.team.actor_class", recast(faulty_classes(plan)))


def recast(classes: Mapping[str, type]) -> Callable[[Role], Any]:
    """Who plays a role, with these classes in the place of those of the same names; set it for `actor_class`."""
    return lambda role: classes.get(role.actor.split(":")[1]) or actor_class(role)


def faulty_classes(plan: Plan) -> dict[str, type]:
    return {
        "RolloutActor": faulty_imagination(plan),
        "RewardActor": faulty_reward(plan),
        "PolicyLearner": faulty_learner(plan),
    }


# The classes are made inside functions: they travel to the workers by value, with the plan.


def faulty_imagination(plan: Plan) -> type:
    class FaultyImagination(RolloutActor):
        def rollout(self, request, spool=None):
            self.key, self.chunk = request.kept_groups[0].key, 0
            for group in request.kept_groups:
                plan.reached(f"start-{group.start_index}")
            result = super().rollout(request, spool)
            plan.reached("imagined-{}-{}".format(*self.key))
            return result

        def count_beat(self):
            plan.reached("chunk-{}-{}-{}".format(*self.key, self.chunk))
            self.chunk += 1
            super().count_beat()

        def load_weights(self, payload):
            number = payload.version.num_updates
            plan.reached(f"load-{number}")
            if (plan.folder / f"kill-learner-{number}").exists():
                victim = int((plan.folder / "note-pid").read_text())
                os.rename(plan.folder / f"kill-learner-{number}", plan.folder / f"done-kill-learner-{number}")
                os.kill(victim, signal.SIGKILL)
            return super().load_weights(payload)

    return FaultyImagination


def faulty_reward(plan: Plan) -> type:
    class FaultyReward(RewardActor):
        def score(self, videos):
            plan.reached("score-{}-{}".format(*videos.members[0][0].key))
            result = super().score(videos)
            plan.reached("scored-{}-{}".format(*videos.members[0][0].key))
            return result

    return FaultyReward


def faulty_learner(plan: Plan) -> type:
    class FaultyLearner(PolicyLearner):
        def __init__(self, *args):
            super().__init__(*args)
            (plan.folder / "note-pid").write_text(str(os.getpid()))
            plan.note(f"learner-{os.getpid()}")

        def take_step(self, minibatch):
            plan.reached(f"before-step-{self.num_updates}-{minibatch.first}")
            metrics = super().take_step(minibatch)
            plan.reached(f"after-step-{self.num_updates}-{minibatch.first}")
            return metrics

        def _save(self, ledger_offset):
            from wmpo_ray.runs import checkpoint

            original = checkpoint._write_json

            def in_the_middle(path, content):
                plan.reached(f"in-checkpoint-{self.num_updates}")
                original(path, content)

            checkpoint._write_json = in_the_middle
            super()._save(ledger_offset)
            checkpoint._write_json = original

        def update_part(self, update, *args):
            result = super().update_part(update, *args)
            plan.reached(f"after-part-{update}")
            return result

        def update(self, *args):
            result = super().update(*args)
            plan.reached(f"before-broadcast-{self.num_updates}")
            return result

    return FaultyLearner
