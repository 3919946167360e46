"""What every judge must hold."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.implementations import make_environment_world, make_reward_model, make_starts, make_tiny
from wmpo_ray.core.interfaces import Judge
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Videos
from wmpo_ray.rollout.judge import VerifiedJudge, VideoJudge, WorldJudge
from wmpo_ray.rollout.requests import rollout_request


def make_video_judge() -> VideoJudge:
    model = make_reward_model()
    model.threshold = 0.5005  # of an untrained one: some of its decisions are successes
    return VideoJudge(model, min_steps=0)


JUDGES = {
    "video": make_video_judge,
    "verified": lambda: VerifiedJudge(make_video_judge(), make_environment_world()),
    "world": WorldJudge,
}


@pytest.fixture(scope="module")
def videos() -> Videos:
    groups = tuple(GroupRequest(0, i, i, start, 2, 0) for i, start in enumerate(make_starts()))
    return rollout_request(make_tiny(), make_environment_world(), RolloutRequest(1, groups, 0, 1.0), 2).videos


@pytest.mark.parametrize("kind", JUDGES)
def test_there_is_one_decision_for_each_video(kind, videos):
    judge: Judge = JUDGES[kind]()
    assert isinstance(judge, Judge)
    scores = judge.judge(videos)
    assert scores.success.shape == scores.finish_step.shape == scores.probability.shape == (6,)
    assert scores.success.dtype == bool and scores.finish_step.dtype == np.int64
    assert (scores.finish_step >= 1).all() and (scores.finish_step <= videos.horizon).all()
    again = judge.judge(videos)
    assert np.array_equal(again.success, scores.success) and np.array_equal(again.finish_step, scores.finish_step)
