"""Judges of trajectories: a reward model, a second world that verifies successes, or the world itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from wmpo_ray.core.interfaces import Judge, RewardModel, World
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import Disputed, Scores, Videos
from wmpo_ray.reward_models.decisions import score_videos
from wmpo_ray.rollout.replay import replay
from wmpo_ray.rollout.requests import member_seeds

ReplayAgain = Callable[[Videos, np.ndarray], np.ndarray]
"""(videos, rows [S] of them) -> frames [S, T+1, H, W, 3] of the same actions in another world."""


class VideoJudge:
    """The reward model's decision about the frames, from `min_steps` executed actions on."""

    def __init__(self, reward_model: RewardModel, min_steps: int):
        self.reward_model, self.min_steps = reward_model, min_steps

    def judge(self, videos: Videos) -> Scores:
        """Raises ValueError for videos without frames."""
        if videos.frames is None:
            raise ValueError("these trajectories have no frames to judge; let the world render all of them")
        with span("score"):
            return score_videos(self.reward_model, videos.frames, videos.instructions, self.min_steps)


class VerifiedJudge:
    """Keeps a success only if the same actions succeed in a second world too, see `verify`.

    They are replayed there under seeds of the requests' members. `again`: judges the replays; None: the same judge.
    """

    def __init__(self, judge: Judge, world: World, disputed: Disputed = "failure", again: Judge | None = None):
        self.first, self.world, self.disputed, self.again = judge, world, disputed, again or judge

    def judge(self, videos: Videos) -> Scores:
        return verify(self.first.judge(videos), videos, self.again, self._replay_again, self.disputed)

    def _replay_again(self, videos: Videos, rows: np.ndarray) -> np.ndarray:
        seeds = member_seeds([videos.members[row] for row in rows], {"step": "verify"})
        frames = replay(self.world, [videos.starts[row] for row in rows], videos.actions[rows], seeds).frames
        assert frames is not None
        return frames


def verify(
    scores: Scores, videos: Videos, judge: Judge, replay_again: ReplayAgain, disputed: Disputed = "failure"
) -> Scores:
    """Judge each success again in a second world (called only if there are any).

    A refuted success is no success. As a "failure" it keeps its finish step: what was done until then is what did not
    succeed. As "unknown" it is left out of what is learned.
    """
    rows = np.flatnonzero(scores.success)
    refuted = np.zeros(len(scores.success), bool)
    if len(rows):
        with span("verify"):
            again = judge.judge(replace(_chosen(videos, rows), frames=replay_again(videos, rows)))
        refuted[rows] = ~again.success
    known = ~refuted if disputed == "unknown" else None
    return replace(scores, success=scores.success & ~refuted, refuted=refuted, known=known)


class NoisyJudge:
    """Gives some trajectories the wrong label on purpose, drawn for each member of the videos' requests.

    A success that is called a failure keeps its finish step, as a refuted one does; a failure called a success lasts to
    the horizon.
    """

    def __init__(self, judge: Judge, false_positives: float, false_negatives: float):
        self.first, self.rates = judge, (false_positives, false_negatives)

    def judge(self, videos: Videos) -> Scores:
        scores, seeds = self.first.judge(videos), member_seeds(videos.members, {"flip": "label-noise"})
        drawn = np.array([np.random.default_rng(seed).random() for seed in seeds("flip", 0)])
        rates = np.where(scores.success, self.rates[1], self.rates[0])
        return replace(scores, success=scores.success ^ (drawn < rates))


class WorldJudge:
    """Uses the success that the world itself reported: the ground truth in an environment."""

    def judge(self, videos: Videos) -> Scores:
        """Raises ValueError for trajectories of a world that does not report success."""
        if videos.success is None or videos.lengths is None:
            raise ValueError(
                "this world does not say what succeeded; judge its videos by a reward model, or roll out in an "
                "environment"
            )
        # If the world ended a trajectory, success or failure was decided there; no later action was executed.
        return Scores(videos.success, videos.lengths.astype(np.int64), videos.success.astype(np.float32))


def _chosen(videos: Videos, rows: np.ndarray) -> Videos:
    """A selection of the videos, without their requests."""
    return Videos(
        None if videos.frames is None else videos.frames[rows],
        tuple(videos.instructions[row] for row in rows),
        videos.actions[rows],
        tuple(videos.starts[row] for row in rows),
    )
