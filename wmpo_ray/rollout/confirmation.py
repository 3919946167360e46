"""Asks a second world about successes, and only about what was done until each of them.

What comes after a success teaches nothing and differs with early ends, so it should decide nothing either. A replay ends
where the second world confirms the success, or with the finish step of the first; frames after both are not imagined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Decision, Judge, RewardModel, World
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.timeline import count, span
from wmpo_ray.core.types import Disputed, Scores, Videos
from wmpo_ray.rollout.judge import refute
from wmpo_ray.rollout.judged_world import JudgedWorld
from wmpo_ray.rollout.requests import member_seed
from wmpo_ray.rollout.slots import Job, Slots


class ClipJudge(Protocol):
    """What decides about the replays, as about the videos."""

    reward_model: RewardModel
    min_steps: int


class FinishVerifiedJudge:
    """Keeps a success only if the same actions succeed in a second world too, no later than in the first.

    `num_slots`: rows of every call of the second world; 0: as many as there are successes. Raises ConfigError for a world
    whose states cannot be cut into trajectories.
    """

    def __init__(self, judge: Judge, world: World, by: ClipJudge, disputed: Disputed = "failure", num_slots: int = 0):
        if "slots" not in world.abilities:
            raise ConfigError(
                f'reward.verify.until="finish": {type(world).__name__} cannot be stepped in parts; set it to "horizon"'
            )
        self.first, self.world, self.by, self.disputed, self.num_slots = judge, world, by, disputed, num_slots

    def judge(self, videos: Videos) -> Scores:
        scores = self.first.judge(videos)
        rows, confirmed = np.flatnonzero(scores.success), np.zeros(0, bool)
        if len(rows):
            with span("verify"):
                confirmed = self._confirm(videos, rows, scores.finish_step[rows])
        return refute(scores, rows, confirmed, self.disputed)

    def _confirm(self, videos: Videos, rows: np.ndarray, finish: np.ndarray) -> np.ndarray:
        """Which of the successes at `rows` [S] with finish steps [S] succeed in the second world by then, [S] bool."""
        chunk, horizon = self.world.chunk_length, videos.actions.shape[1]
        world = JudgedWorld(self.world, self.by.reward_model, self.by.min_steps, horizon)
        num_chunks = horizon // chunk
        policy = Recorded(videos.actions[rows].reshape(len(rows), num_chunks, chunk, -1))
        members = [videos.members[row] for row in rows]

        def seed_of(purpose: str, row: int, number: int) -> int:
            return policy.place(row, number) if purpose == "act" else member_seed(members[row], "verify", number)

        limits = np.clip(-(-finish // chunk), 1, num_chunks)
        job = Job([videos.starts[row] for row in rows], seed_of, lambda row: True, limits)
        slots = Slots(policy, world, num_chunks, 1.0, self.num_slots or len(rows), frames="last")
        slots.jobs.append(job)
        replayed = slots.finish(job)
        count("verified_chunks", job.num_chunks)
        assert replayed.success is not None
        return replayed.success & (replayed.lengths <= finish)


class Recorded:
    """A policy that takes actions [S, N, K, D] again. A seed says which: where the chunk stands in them."""

    def __init__(self, actions: np.ndarray):
        self._actions = torch.from_numpy(np.ascontiguousarray(actions, np.float32))

    def place(self, row: int, chunk: int) -> int:
        return row * self._actions.shape[1] + chunk

    def act(self, observation: Observation, temperature: float, seeds: Sequence[int]) -> Decision:
        actions = self._actions.flatten(0, 1)[torch.tensor(list(seeds))]
        return Decision(actions, {}, torch.zeros(len(actions), 0))
