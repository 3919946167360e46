"""A world that ends trajectories at their success: the same trajectories to the last bit, and less of them imagined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.implementations import make_frame_reward_model, make_tiny
from tests.support.small_world import EMBEDDED, CountedWorld, scene_starts, small_world_model
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.types import GroupRequest, RolloutRequest
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.pocket.env import INSTRUCTIONS, PocketEnvironment
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import NetworkRewardConfig
from wmpo_ray.rollout.judge import VideoJudge, WorldJudge
from wmpo_ray.rollout.judged_world import JudgedWorld
from wmpo_ray.rollout.requests import RequestedRollouts, SlottedRequests, rollout_request

CHUNKS, HORIZON = 4, 16


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def world(request):
    return small_world_model(EMBEDDED.model_copy(update={"precision": request.param}), num_steps=1)


@pytest.fixture(scope="module")
def reward_model() -> VideoMAERewardModel:
    """Untrained, with a threshold that some trajectories reach at some time."""
    model = VideoMAERewardModel.create(NetworkRewardConfig(clip_length=4), 16, INSTRUCTIONS, seed=3)
    with torch.no_grad():
        model.network.classifier.weight.normal_(0, 4, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def rolled(world, reward_model):
    """The whole horizon of every trajectory, in four slots, and what the reward model says of it."""
    made = SlottedRequests(make_tiny(), world, CHUNKS, 4).rollout(make_request())
    probabilities = reward_model.probabilities(made.videos.frames, made.videos.instructions)
    reward_model.threshold = float(np.quantile(probabilities.max(1), 0.4))
    return made, VideoJudge(reward_model, 2).judge(made.videos)


def make_request(count: int = 3, size: int = 4) -> RolloutRequest:
    groups = tuple(GroupRequest(0, i, i, start, size, 7) for i, start in enumerate(scene_starts(count)))
    return RolloutRequest(1, groups, 0, 1.0)


def rolled_out(world, slots: int, **options) -> RequestedRollouts:
    if slots:
        return SlottedRequests(make_tiny(), world, CHUNKS, slots, **options).rollout(make_request())
    return rollout_request(make_tiny(), world, make_request(), CHUNKS, **options)


@pytest.mark.parametrize("slots", [4, 0])
def test_ending_early_changes_no_bit_of_what_is_learned_from(world, reward_model, rolled, slots):
    _, scores = rolled
    whole = rolled_out(world, slots)
    if not slots:
        scores = VideoJudge(reward_model, 2).judge(whole.videos)
    counted = CountedWorld(world)
    early_world = JudgedWorld(counted, reward_model, 2, HORIZON)
    early = rolled_out(early_world, slots, world_judges=True)
    judged = WorldJudge().judge(early.videos)
    assert (judged.success == scores.success).all() and 0 < scores.success.sum() < len(scores.success)
    assert (judged.finish_step == scores.finish_step).all()
    for row, finish in enumerate(scores.finish_step):
        decisions = -(-int(finish) // 4)
        for name in ("frames", "behavior_logprobs", "actions"):
            one, other = (getattr(made.trajectories, name)[row, :decisions] for made in (whole, early))
            assert one.tobytes() == other.tobytes(), (name, row)
    needed = sum(-(-int(finish) // 4) for finish in scores.finish_step)
    assert needed <= counted.num_rows <= (CHUNKS * 12 if slots == 0 else needed + CHUNKS * 3)
    if slots:
        assert counted.num_rows < CHUNKS * 12


def test_a_world_that_cannot_be_cut_is_stepped_whole(reward_model):
    simulator = EnvironmentWorld(PocketEnvironment(HORIZON), 4)
    with pytest.raises(ConfigError, match=r"EnvironmentWorld cannot be stepped in parts; set rollout.slots=0"):
        SlottedRequests(make_tiny(), simulator, CHUNKS, 4).rollout(make_request())
    made = rollout_request(
        make_tiny(), JudgedWorld(simulator, reward_model, 0, HORIZON), make_request(), CHUNKS, world_judges=True
    )
    plain = rollout_request(make_tiny(), simulator, make_request(), CHUNKS)
    judged, scores = WorldJudge().judge(made.videos), VideoJudge(reward_model, 0).judge(plain.videos)
    assert (judged.success == scores.success).all() and (judged.finish_step == scores.finish_step).all()


@pytest.mark.parametrize("clip_length", [1, 3])
def test_a_reward_model_of_single_frames_decides_the_same_frame_by_frame(clip_length):
    simulator, model = EnvironmentWorld(PocketEnvironment(HORIZON), 4), make_frame_reward_model(clip_length)
    plain = rollout_request(make_tiny(), simulator, make_request(), CHUNKS)
    best = model.probabilities(plain.videos.frames, plain.videos.instructions)[:, 1:].max(1)
    model.threshold = float(np.quantile(best, 0.4))
    made = rollout_request(
        make_tiny(), JudgedWorld(simulator, model, 0, HORIZON), make_request(), CHUNKS, world_judges=True
    )
    judged, scores = WorldJudge().judge(made.videos), VideoJudge(model, 0).judge(plain.videos)
    assert 0 < scores.success.sum() < len(scores.success)
    assert (judged.success == scores.success).all() and (judged.finish_step == scores.finish_step).all()
