"""A second world is asked about successes only, up to each of them, and what comes after decides nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.implementations import make_environment_world, make_tiny
from tests.support.small_world import EMBEDDED, CountedWorld, scene_starts, small_world_model
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Scores, Videos
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import NetworkRewardConfig
from wmpo_ray.rollout.confirmation import FinishVerifiedJudge
from wmpo_ray.rollout.judge import VideoJudge
from wmpo_ray.rollout.replay import replay
from wmpo_ray.rollout.requests import RequestedRollouts, SlottedRequests, member_seeds

MIN_STEPS, CHUNKS, HORIZON = 2, 4, 16


@pytest.fixture(scope="module")
def by() -> VideoJudge:
    model = VideoMAERewardModel.create(NetworkRewardConfig(clip_length=4), 16, INSTRUCTIONS, seed=3)
    with torch.no_grad():
        model.network.classifier.weight.normal_(0, 4, generator=torch.Generator().manual_seed(0))
    return VideoJudge(model, MIN_STEPS)


@pytest.fixture(scope="module")
def made(by) -> RequestedRollouts:
    world = small_world_model(EMBEDDED, num_steps=1)
    groups = tuple(GroupRequest(0, i, i, start, 4, 7) for i, start in enumerate(scene_starts(3)))
    rolled = SlottedRequests(make_tiny(), world, CHUNKS, 4).rollout(RolloutRequest(1, groups, 0, 1.0))
    probabilities = by.reward_model.probabilities(rolled.videos.frames, rolled.videos.instructions)
    by.reward_model.threshold = float(np.quantile(probabilities.max(1), 0.25))
    return rolled


@pytest.fixture
def second() -> CountedWorld:
    """A world in which less changes than in the one that imagined."""
    world = small_world_model(EMBEDDED, num_steps=1)
    with torch.no_grad():
        world.denoiser.network.final_layer.linear.weight.mul_(0.6)
    return CountedWorld(world)


def confirmed_by_hand(by: VideoJudge, world, videos: Videos, first: Scores) -> np.ndarray:
    """Replay all of each success, and look at the windows that end by its finish step."""
    rows = np.flatnonzero(first.success)
    seeds = member_seeds([videos.members[row] for row in rows], {"step": "verify"})
    frames = replay(world, [videos.starts[row] for row in rows], videos.actions[rows], seeds).frames
    texts = [videos.instructions[row] for row in rows]
    passed = by.reward_model.probabilities(frames, texts) >= by.reward_model.threshold
    ends = np.arange(passed.shape[1]) + by.reward_model.clip_length - 1
    counts = (ends[None] >= MIN_STEPS) & (ends[None] <= first.finish_step[rows, None])
    kept = first.success.copy()
    kept[rows] = (passed & counts).any(1)
    return kept


def test_what_succeeds_by_the_finish_step_in_the_second_world_is_confirmed(by, made, second):
    first = by.judge(made.videos)
    expected = confirmed_by_hand(by, second.world, made.videos, first)
    scores = FinishVerifiedJudge(by, second, by).judge(made.videos)
    assert scores.success.tolist() == expected.tolist()
    assert 0 < expected.sum() < first.success.sum(), "some are confirmed, some are not"
    assert (scores.refuted == (first.success & ~expected)).all()
    assert (scores.finish_step == first.finish_step).all()


def test_what_is_done_after_the_finish_step_decides_nothing(by, made, second):
    first = by.judge(made.videos)
    actions = made.videos.actions.copy()
    for row, finish in enumerate(first.finish_step):
        actions[row, -(-finish // 4) * 4 :] = 0.9
    judge = FinishVerifiedJudge(Decided(first), second, by)
    one, other = judge.judge(made.videos), judge.judge(replace(made.videos, actions=actions))
    assert (one.success == other.success).all() and (one.refuted == other.refuted).all()


class Decided:
    def __init__(self, scores: Scores):
        self.scores = scores

    def judge(self, videos: Videos) -> Scores:
        return self.scores


@pytest.mark.parametrize("slots", [0, 3])
def test_nothing_is_imagined_beyond_the_latest_finish_step(by, made, second, slots):
    first = by.judge(made.videos)
    first = replace(first, finish_step=np.minimum(first.finish_step, HORIZON // 2))
    FinishVerifiedJudge(Decided(first), second, by, num_slots=slots).judge(made.videos)
    rows = slots or int(first.success.sum())
    needed = -(-first.finish_step[first.success] // 4)
    assert second.num_rows % rows == 0 and second.num_rows <= int(needed.sum()) + rows * int(needed.max())
    assert second.num_rows < first.success.sum() * CHUNKS


def test_with_slots_the_company_of_a_success_changes_nothing(by, made, second):
    first = by.judge(made.videos)
    together = FinishVerifiedJudge(Decided(first), second, by, num_slots=4).judge(made.videos)
    rows = np.flatnonzero(first.success)[::2]
    fewer = replace(first, success=np.isin(np.arange(len(first.success)), rows))
    alone = FinishVerifiedJudge(Decided(fewer), second, by, num_slots=4).judge(made.videos)
    assert (alone.success[rows] == together.success[rows]).all()


def test_without_successes_nobody_is_asked(by, made, second):
    nothing = replace(by.judge(made.videos), success=np.zeros(len(made.videos), bool))
    scores = FinishVerifiedJudge(Decided(nothing), second, by).judge(made.videos)
    assert not scores.refuted.any() and not second.num_rows


def test_a_world_that_cannot_be_stepped_in_parts_is_refused(by):
    with pytest.raises(ConfigError, match=r'reward.verify.until.*"horizon"'):
        FinishVerifiedJudge(by, make_environment_world(), by)
