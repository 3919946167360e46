"""A perfect world agrees with reality about everything; what is wrong in another one is counted."""

from __future__ import annotations

import numpy as np
import pytest

from wmpo_ray.core.types import Episodes, Scores, Videos
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.rollout import held_out_judge
from wmpo_ray.rollout.evaluation import rollout_expert
from wmpo_ray.rollout.held_out_judge import HeldOutJudge, mean_agreement

HORIZON = 16


class LastFrameJudge:
    """Success is a red mean of the last frame above a bound."""

    def __init__(self, bound: float):
        self.bound = bound

    def judge(self, videos: Videos) -> Scores:
        success = videos.frames[:, -1, ..., 0].mean((1, 2)) > self.bound
        return Scores(success, np.full(len(videos), HORIZON), success.astype(np.float32))


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    return rollout_expert(PocketEnvironment(HORIZON), np.arange(6), 1.5, (0, "demos"))


@pytest.fixture(scope="module")
def judge(episodes) -> LastFrameJudge:
    return LastFrameJudge(float(np.median(episodes.frames[:, -1, ..., 0].mean((1, 2)))))


def world() -> EnvironmentWorld:
    return EnvironmentWorld(PocketEnvironment(HORIZON), 4)


def test_a_perfect_world_agrees_with_reality(episodes, judge):
    detect = PocketEnvironment.detect_events
    metrics = HeldOutJudge(episodes, 0, detect, judge, has_labels=False).metrics(world())
    assert metrics["label_agreement"] == metrics["grasp_agreement"] == metrics["placement_agreement"] == 1.0
    assert metrics["psnr_db"] > 40 and metrics["false_positives"] == metrics["false_negatives"] == 0
    assert 0 < metrics["true_rate"] < 1 and mean_agreement(metrics) == 1.0


def test_known_labels_count_more_than_the_judge_of_real_videos(episodes, judge):
    assert 0 < episodes.success.sum()
    seen = judge.judge(Videos(episodes.frames, episodes.instructions, episodes.actions, ())).success
    metrics = HeldOutJudge(episodes, 0, None, judge).metrics(world())
    assert metrics["label_agreement"] == pytest.approx(float((seen == episodes.success).mean()))


def test_events_of_other_actions_disagree(episodes):
    still = np.zeros_like(episodes.actions)
    other = Episodes(episodes.frames, still, *(getattr(episodes, name) for name in ("lengths", "success")),
                     episodes.instructions, episodes.seeds)  # fmt: skip
    metrics = HeldOutJudge(other, 0, PocketEnvironment.detect_events, None).metrics(world())
    assert metrics["grasp_agreement"] < 1 and mean_agreement(metrics) < 1


def test_batches_change_nothing(episodes, judge, monkeypatch):
    one = HeldOutJudge(episodes, 0, PocketEnvironment.detect_events, judge).metrics(world())
    monkeypatch.setattr(held_out_judge, "batch_within", lambda shape: 2)
    parts = HeldOutJudge(episodes, 0, PocketEnvironment.detect_events, judge).metrics(world())
    assert one.keys() == parts.keys() and one == pytest.approx(parts)


def test_where_nothing_judges_there_is_no_agreement(episodes):
    metrics = HeldOutJudge(episodes, 0, None, None).metrics(world())
    assert metrics.keys() == {"psnr_db"} and mean_agreement(metrics) is None
