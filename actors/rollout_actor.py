"""A rollout worker: a world and a replica of the policy that acts in it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from actors.replica import Replica
from actors.reward_actor import make_judge
from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Judge, World
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.timeline import count, span
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Scores, Trajectories, Videos, WeightVersion
from wmpo_ray.data.spool import save_trajectories
from wmpo_ray.policies.weight_payload import WeightPayload
from wmpo_ray.registry import load_policy, load_reward_model, load_world_model
from wmpo_ray.rollout.judge import VideoJudge, WorldJudge
from wmpo_ray.rollout.judged_world import JudgedWorld
from wmpo_ray.rollout.requests import RequestedRollouts, SlottedRequests, rollout_request
from wmpo_ray.rollout.slots import NothingWantedError, check_slots

Key = tuple[int, int]  # update, attempt


class Imagination(NamedTuple):
    """Summary of a finished request for the driver."""

    seconds: float
    sha256: str  # of the spooled trajectories
    scores: Scores | None = None  # set if the world judges: no reward worker is needed
    is_dropped: bool = False  # nobody wanted it any more
    num_chunks: int = 0  # of all trajectories, that were imagined


class DroppedGroups:
    """Groups of a request that are not wanted any more; another thread may add to them while it is rolled out."""

    def __init__(self) -> None:
        self._keys: dict[int, frozenset[Key]] = {}  # by the number of the request

    def add(self, request_id: int, keys: Iterable[Key]) -> None:
        self._keys[request_id] = self._keys.get(request_id, frozenset()) | frozenset(keys)

    def is_wanted(self, request: RolloutRequest, group: GroupRequest) -> bool:
        return group.key not in self._keys.get(request.request_id, ())

    def forget(self, before_request: int) -> None:
        for number in [number for number in list(self._keys) if number < before_request]:
            self._keys.pop(number, None)


class RolloutActor(Replica):
    """Plain class; `cluster` wraps it where it is placed.

    `judge`: decides here, from what the world says; without one the videos go to a reward worker. With
    `reward.placement = "with_imagination"` the world ends its trajectories, by the reward model beside it.
    """

    judge: Judge | None = None

    def __init__(
        self,
        config: Config,
        policy_dir: str,
        world_model_dir: str,
        reward_model_dir: str | None = None,
        verifier_dir: str | None = None,
    ):
        configure_process(config.cluster.threads_per_process)
        super().__init__(load_policy(config, policy_dir), config.cluster.threads_per_process)
        self.config = config
        self.world = self.make_world(world_model_dir)
        if reward_model_dir is not None and config.judges_while_imagining:
            self.judge = self.watch(reward_model_dir, verifier_dir)
        self.num_beats = 0
        self.dropped = DroppedGroups()
        self.slotted = self.make_slots()

    @property
    def num_slots(self) -> int:
        return self.config.rollout.slots

    def make_world(self, path: str) -> World:
        world = load_world_model(self.config, path)
        check_slots(world, self.config.rollout.slots)
        return world

    def make_slots(self) -> SlottedRequests | None:
        if not self.num_slots:
            return None
        return SlottedRequests(
            self.policy,
            self.world,
            self.config.num_chunks,
            self.num_slots,
            world_judges=self.judge is not None,
            is_wanted=self.dropped.is_wanted,
        )

    def watch(self, reward_model_dir: str, verifier_dir: str | None) -> Judge:
        """Let the reward model end trajectories; returns what judges them at their end."""
        config = self.config
        reward_model = load_reward_model(config, reward_model_dir)
        self.world = JudgedWorld(self.world, reward_model, config.reward.min_steps, config.rollout_horizon)
        again = VideoJudge(reward_model, config.reward.min_steps)
        return make_judge(config, WorldJudge(), verifier_dir, again)

    def rollout(
        self, request: RolloutRequest, spool: str | None = None
    ) -> tuple[Imagination, Videos | None, Trajectories | None]:
        """Roll out a request: a summary for the driver, videos for a reward actor, trajectories for the learner.

        `spool` is where the trajectories are also written, so that a restart of the run need not roll them out again.
        Nothing is made of a request that was dropped as a whole.
        Raises RuntimeError if the replica does not hold the weights that the request asks for.
        """
        if self.version.digest != request.weights:
            raise RuntimeError(f"request {request.request_id} wants weights {request.weights}, not {self.version}")
        started, judge = time.monotonic(), self.judge
        self.dropped.forget(request.request_id)
        try:
            videos, trajectories, num_chunks = self._roll_out(request)
        except NothingWantedError:
            return Imagination(time.monotonic() - started, "", is_dropped=True), None, None
        scores = judge.judge(videos) if judge is not None else None
        with span("spool"):
            sha256 = save_trajectories(Path(spool), trajectories) if spool else ""
        count("chunks", num_chunks)
        summary = Imagination(time.monotonic() - started, sha256, scores, num_chunks=num_chunks)
        return summary, None if judge is not None else videos, trajectories

    def _roll_out(self, request: RolloutRequest) -> RequestedRollouts:
        if self.slotted is not None:
            return self.slotted.rollout(request, self.count_beat)
        judges = self.judge is not None
        return rollout_request(
            self.policy, self.world, request, self.config.num_chunks, self.count_beat, world_judges=judges
        )

    def _load(self, payload: WeightPayload) -> WeightVersion:
        if self.slotted is not None:
            self.slotted.clear()  # it was begun under other weights
        return super()._load(payload)

    def expect(self, request: RolloutRequest) -> None:
        """The request that follows the present one: with slots, it begins where they come free."""
        if self.slotted is not None:
            self.slotted.expect(request)

    def drop(self, request_id: int, keys: Iterable[Key]) -> None:
        """Groups of a request that nobody wants any more: with slots, they leave at the next chunk."""
        self.dropped.add(request_id, keys)

    def count_beat(self) -> None:
        """Count progress after every chunk: a worker that makes progress is not hung, however long its request."""
        self.num_beats += 1
