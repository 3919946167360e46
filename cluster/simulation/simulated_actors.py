"""Stand-ins for the actors of a run, for `cluster/simulation/simulated_runtime.py`: the same methods, no models.

What an actor would compute is a hash of everything that it may depend on. So the learner's final digest changes if one
group is lost, doubled, out of order, imagined under other weights or scored otherwise, and is the same if none is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from actors.environment_actor import EnvironmentActor
from actors.reward_actor import RewardActor
from actors.rollout_actor import DroppedGroups, Imagination, RolloutActor
from cluster.simulation.simulated_steps import Key, Payload, SavedLearner, SimulatedSteps, digest_of
from learners.policy_learner import PolicyLearner, Spooled
from wmpo_ray.algorithms.batching import GroupSlice
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import LearnerState, StepFacts, UpdateFacts, UpdateResult
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Scores, WeightVersion
from wmpo_ray.data.spool import SpoolError
from wmpo_ray.policies.weight_payload import WeightMismatchError


class Rollout(NamedTuple):
    """One imagined trajectory: what stands for its frames, tokens and log-probabilities."""

    key: Key
    member: int
    weights: str  # digest of those that it was imagined under
    content: str


def rollout_of(group: GroupRequest, member: int, weights: str) -> Rollout:
    content = digest_of(weights, group.run_seed, *group.key, group.start_index)
    return Rollout(group.key, member, weights, content)


def outcomes_of(rollouts: Sequence[Rollout], group_size: int, keep_rate: float) -> np.ndarray:
    """Success [M] bool of members of groups: mixed for a share `keep_rate` of all groups, else all equal."""
    return np.array([_succeeds(row, group_size, keep_rate) for row in rollouts], bool)


def _succeeds(row: Rollout, group_size: int, keep_rate: float) -> bool:
    number = int(row.content, 16)
    is_mixed, rest = number % 10_000 < keep_rate * 10_000, number // 10_000
    return row.member < 1 + rest % (group_size - 1) if is_mixed else rest % 2 == 1


def scores_of(rollouts: Sequence[Rollout], group_size: int, keep_rate: float) -> Scores:
    success = outcomes_of(rollouts, group_size, keep_rate)
    return Scores(success, np.where(success, 4, 8), success.astype(np.float32))


@dataclass
class SimulatedWorld:
    """What outlives the actors, and which faults they inject.

    Args:
        keep_rate: share of groups with mixed outcomes
        world_judges: rollouts come with their scores, and videos are not scored
        spool: "none", "memory" (the learner can read trajectories back) or "file" (so can the driver)
        poison: groups that crash their worker
        damages_weights: whether weights that a replica loads just now arrive damaged
        damages_checkpoint: whether the newest checkpoint cannot be read just now; there is an older one
    """

    keep_rate: float = 0.5
    world_judges: bool = False
    spool: str = "none"
    poison: frozenset[Key] = frozenset()
    damages_weights: Callable[[], bool] = lambda: False
    damages_checkpoint: Callable[[], bool] = lambda: False
    checkpoints: dict[int, SavedLearner] = field(default_factory=dict)
    spooled: dict[str, list[Rollout]] = field(default_factory=dict)
    num_trajectories: int = 0  # imagined so far
    num_parts: int = 0  # calls for a part of an update so far
    num_last_steps: int = 0  # times that a replica loaded an update's last step so far

    def stand_ins(self) -> dict[type, Callable[..., Any]]:
        return {
            RolloutActor: partial(SimulatedRollouts, self),
            RewardActor: partial(SimulatedReward, self),
            PolicyLearner: partial(SimulatedLearner, self),
            EnvironmentActor: partial(SimulatedEnvironment, self),
        }


class PoisonError(RuntimeError):
    """A start state that crashes its worker."""


class SimulatedRollouts:
    def __init__(self, world: SimulatedWorld, config: Config, *paths: str):
        self.world = world
        self.num_beats = 0
        self.version = WeightVersion(-1, "")
        self.dropped = DroppedGroups()
        self.staged = ("", "")  # version that the steps start from, and the latest of them

    def drop(self, request_id: int, keys: Sequence[Key]) -> None:
        self.dropped.add(request_id, keys)

    def expect(self, request: RolloutRequest) -> None:
        assert self.version.digest == request.weights, "lined up behind a request for other weights"

    def leaves_early(self, method: str, *args: Any) -> bool:
        return method == "rollout" and not any(self.dropped.is_wanted(args[0], group) for group in args[0].kept_groups)

    def load_weights(self, payload: Payload | None) -> WeightVersion:
        (origin, name), self.staged = self.staged, ("", "")
        bases = {"", self.version.digest} | ({name} if origin == self.version.digest else set())
        if payload is None or payload.base not in bases:
            raise WeightMismatchError(f"these weights do not follow those of {self.version}")
        if payload.base not in ("", self.version.digest):
            self.world.num_last_steps += 1
        self.version = payload.version
        if self.world.damages_weights():
            self.version = payload.version._replace(digest="damaged")
        return self.version

    def stage_weights(self, step: Payload) -> str:
        """What `WeightReceiver.stage` does with names."""
        if step.base == self.version.digest:
            self.staged = (step.base, step.base)
        origin, name = self.staged
        if origin == self.version.digest and name == step.base:
            self.staged = (origin, step.version.digest)
        return self.staged[1]

    def rollout(self, request: RolloutRequest, spool: str) -> tuple[Imagination, list[Rollout] | None, list[Rollout]]:
        assert self.version.digest == request.weights, f"request for {request.weights} at a replica of {self.version}"
        if any(group.key in self.world.poison for group in request.groups):
            raise PoisonError(f"request {request.request_id}")
        self.num_beats += 1
        if self.leaves_early("rollout", request):
            return Imagination(0.0, "", is_dropped=True), None, []
        rollouts = [rollout_of(group, member, self.version.digest) for group, member in request.members]
        self.world.num_trajectories += len(rollouts)
        judged = self.world.world_judges
        scores = scores_of(rollouts, request.groups[0].group_size, self.world.keep_rate) if judged else None
        return Imagination(0.0, self._spool(spool, rollouts), scores), None if judged else rollouts, rollouts

    def _spool(self, path: str, rollouts: list[Rollout]) -> str:
        if self.world.spool == "none":
            return ""
        self.world.spooled[path] = rollouts
        text = json.dumps(rollouts)
        if self.world.spool == "file":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text)
        return hashlib.sha256(text.encode()).hexdigest()


class SimulatedReward:
    def __init__(self, world: SimulatedWorld, config: Config, *paths: str | None):
        self.world = world
        self.group_size = config.rollout.group_size
        self.num_beats = 0

    def score(self, videos: list[Rollout]) -> tuple[Scores, float]:
        assert not self.world.world_judges, "the rollouts came with their scores"
        self.num_beats += 1
        return scores_of(videos, self.group_size, self.world.keep_rate), 0.0


class SimulatedLearner:
    """Keeps a checkpoint for every `checkpoint.every_updates` updates in the world."""

    def __init__(self, world: SimulatedWorld, config: Config, *paths: str):
        self.world, self.config = world, config
        self.num_beats = 0
        self.saved = SavedLearner((digest_of("untrained", config.seed),))
        self.steps: SimulatedSteps | None = None  # of the update in progress
        self.sent = ""  # name of the latest step of it that went out
        self.last: Payload | None = None

    @property
    def version(self) -> WeightVersion:
        return WeightVersion(len(self.saved.digests) - 1, self.saved.digests[-1])

    def resume(self) -> LearnerState:
        checkpoints, problems = self.world.checkpoints, []
        if len(checkpoints) > 1 and self.world.damages_checkpoint():
            problems = [f"checkpoint {max(checkpoints)} is damaged"]
            del checkpoints[max(checkpoints)]
        if checkpoints:
            self.saved = checkpoints[max(checkpoints)]
        digests = dict(enumerate(self.saved.digests))
        trained = list(self.saved.trained[-1]) if self.saved.trained else []
        return LearnerState(self.version, digests, list(self.saved.history), trained, problems)

    def weights(self, num_updates: int) -> tuple[WeightVersion, Payload]:
        oldest = self.version.num_updates - self.config.max_staleness
        assert max(0, oldest) <= num_updates <= self.version.num_updates, f"weights {num_updates} are not kept"
        version = WeightVersion(num_updates, self.saved.digests[num_updates])
        return version, Payload(version)

    def update(
        self, groups: Sequence[GroupSlice], facts: UpdateFacts, *sources: list[Rollout] | Spooled
    ) -> tuple[UpdateResult, Payload, Payload]:
        base = self.version
        steps = self._take(facts.num_given, groups, sources)
        assert steps.keys == facts.keys, f"trained on {steps.keys} and not on {facts.keys}"
        digest, self.steps = steps.finish(), None
        sent, self.sent = self.sent, ""
        metrics = {**facts.metrics, "time/update_s": 1.0}
        self.saved = SavedLearner(
            (*self.saved.digests, digest),
            (*self.saved.trained, tuple(facts.keys)),
            (*self.saved.history, {"update": base.num_updates + 1, **metrics}),
        )
        self._save()
        self.num_beats += 1
        oldest = min(self.world.checkpoints) if len(self.world.checkpoints) >= self.config.checkpoint.keep else 0
        self.last = Payload(self.version, sent) if sent else None
        last = StepFacts(sent, digest, 1, 2, 2) if sent else None
        compact = Payload(self.version, base.digest)
        return UpdateResult(self.version, metrics, oldest, last), Payload(self.version), compact

    def step_weights(self) -> tuple[StepFacts, Payload]:
        base = self.sent or self.version.digest
        assert self.steps is not None, "no part of an update has been trained"
        self.sent = digest_of("step", base, self.steps.digest)
        return StepFacts(base, self.sent, 1, 1), Payload(WeightVersion(self.version.num_updates, self.sent), base)

    def last_step(self) -> Payload | None:
        return self.last

    def update_part(
        self, update: int, first: int, groups: Sequence[GroupSlice], *sources: list[Rollout] | Spooled
    ) -> int:
        assert update == self.version.num_updates, f"a part of update {update} for a learner at {self.version}"
        self.num_beats += 1
        self.world.num_parts += 1
        return len(self._take(first, groups, sources).keys)

    def _take(
        self, first: int, groups: Sequence[GroupSlice], sources: Sequence[list[Rollout] | Spooled]
    ) -> SimulatedSteps:
        """Take the steps that the groups from number `first` on make possible."""
        opened = [self._open(source) for source in sources]
        base = self.version
        wanted = self.saved.digests[max(0, base.num_updates - self.config.max_staleness)]
        self.steps = self.steps or SimulatedSteps(base.digest, self.config.training.minibatch_trajectories)
        assert first <= len(self.steps.keys), f"groups {len(self.steps.keys)} to {first - 1} have not come"
        for group in groups[len(self.steps.keys) - first :]:
            rows = [row for source, rows in group.pieces for row in opened[source][slice(*rows)]]
            assert all(row.key[0] == base.num_updates and row.weights == wanted for row in rows), (
                f"{rows}: not {wanted}"
            )
            assert len({row.key for row in rows}) == 1, f"{rows} are no group"
            self.steps.add(rows, group.success)
        return self.steps

    def _save(self) -> None:
        version, settings = self.version, self.config.checkpoint
        if version.num_updates % settings.every_updates == 0 or version.num_updates == self.config.training.num_updates:
            self.world.checkpoints[version.num_updates] = self.saved
        checkpoints = self.world.checkpoints
        for old in sorted(checkpoints)[: -settings.keep]:
            del checkpoints[old]

    def _open(self, source: list[Rollout] | Spooled) -> list[Rollout]:
        if not isinstance(source, Spooled):
            return source
        if source.path not in self.world.spooled:
            raise SpoolError(f"{source.path} is missing")
        return self.world.spooled[source.path]

    def save_policy(self, path: str) -> str:
        return path


class SimulatedEnvironment:
    def __init__(self, world: SimulatedWorld, config: Config, *paths: str):
        self.num_beats = 0

    def evaluate(self, weights: Payload, seeds: list[int], temperature: float) -> np.ndarray:
        return np.arange(len(seeds)) % 2 == 0

    def compare_labels(self, rollouts: list[Rollout], seeds: list[int], scores: tuple[Scores, float]) -> np.ndarray:
        return np.stack([scores[0].success, scores[0].success])
