"""Imagination: a request is a pure function of weights and request, whatever it is batched with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.contract.test_contracts import make_starts, make_tiny
from wmpo_ray.core.interfaces import ActionChunk
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import GroupRequest, RolloutRequest
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.rollout import evaluation
from wmpo_ray.rollout.act import imagine, imagine_actions
from wmpo_ray.rollout.evaluation import (
    execute_actions,
    expert_batches,
    rollout_expert,
    rollout_outcomes,
    rollout_policy,
)
from wmpo_ray.world_models.simulator import SimulatorWorldModel


@pytest.fixture(scope="module")
def policy():
    return make_tiny()


@pytest.fixture(scope="module")
def world_model():
    return SimulatorWorldModel(lambda: PocketEnvironment(8), 4)


def make_request(attempts: list[int], version: int = 0, run_seed: int = 0) -> RolloutRequest:
    starts = make_starts(4)
    groups = tuple(GroupRequest(2, a, a % 4, starts[a % 4], 3, run_seed) for a in attempts)
    return RolloutRequest(1, groups, version, 1.0)


def test_shapes_and_alignment(policy, world_model):
    result = imagine(policy, world_model, make_request([0, 1]), num_chunks=2)
    videos, trajectories = result.videos, result.trajectories
    assert videos.frames.shape == (6, 9, 16, 16, 3) and trajectories.frames.shape == (6, 2, 16, 16, 3)
    assert (trajectories.frames[:, 1] == videos.frames[:, 4]).all(), "the policy decides on the newest frame"
    assert (videos.actions.reshape(6, 2, 4, 3) == trajectories.actions).all()
    starts = make_starts(2)
    assert (videos.frames[:3, 0] == starts[0].frames[0]).all() and (videos.frames[3:, 0] == starts[1].frames[0]).all()


def test_a_group_is_the_same_alone_and_in_company(policy, world_model):
    together = imagine(policy, world_model, make_request([0, 1, 2]), 2)
    alone = imagine(policy, world_model, make_request([1]), 2)
    assert (together.trajectories.action_tokens[3:6] == alone.trajectories.action_tokens).all()
    assert (together.videos.frames[3:6] == alone.videos.frames).all()


def test_members_differ_and_seeds_decide(policy, world_model):
    one = imagine(policy, world_model, make_request([0]), 2).trajectories.action_tokens
    same = imagine(policy, world_model, make_request([0]), 2).trajectories.action_tokens
    other = imagine(policy, world_model, make_request([0], run_seed=1), 2).trajectories.action_tokens
    assert (one == same).all() and not (one == other).all() and not (one[0] == one[1]).all()


def test_in_the_perfect_world_imagination_is_reality(policy, world_model):
    """The simulator as world model gives the frames and outcomes that executing the actions gives."""
    request = make_request([0, 1])
    videos = imagine(policy, world_model, request, 2).videos
    environment = PocketEnvironment(8)
    seeds = [group.start.seed for group in request.groups for _ in range(3)]
    frames = [environment.reset(seeds)]
    for t in range(8):
        frames.append(environment.step(videos.actions[:, t])[0])
    assert (np.stack(frames, 1) == videos.frames).all()
    assert (execute_actions(PocketEnvironment(8), seeds, videos.actions) == environment.success).all()


def test_replayed_actions_give_the_same_videos(policy, world_model):
    request = make_request([0, 1])
    videos = imagine(policy, world_model, request, 2).videos
    keys = [(group, member) for group in request.groups for member in range(3)]
    again = imagine_actions(world_model, [group.start for group, _ in keys], videos.actions, keys)
    assert (again == videos.frames).all()


def test_real_episodes_do_not_depend_on_the_batch(policy):
    together = rollout_policy(policy, PocketEnvironment(8), [3, 4, 5], 1.0, (0, "x"))
    alone = rollout_policy(policy, PocketEnvironment(8), [4], 1.0, (0, "x"), keep_frames=False)
    assert (together.actions[1] == alone.actions[0]).all() and together.success[1] == alone.success[0]


class HalfSkilled:
    """Acts like the expert in every second scene and stands still in the others."""

    chunk_length = 2
    action_dim = 3

    def __init__(self, environment: PocketEnvironment):
        self.environment = environment

    def act(self, frames, instructions, temperature, seeds) -> ActionChunk:
        actions = self.environment.expert_action(np.random.default_rng(0), 0.0)
        actions[::2] = 0.0
        return ActionChunk(None, None, torch.from_numpy(actions)[:, None].repeat(1, 2, 1))


class CountingEnvironment(PocketEnvironment):
    num_unseen = 0  # steps without a picture

    def step(self, actions, render=True):
        self.num_unseen += not render
        return super().step(actions, render)


@pytest.mark.parametrize(("num_videos", "all_kept"), [(3, False), (100, True)])
def test_outcomes_do_not_depend_on_which_frames_are_kept(monkeypatch, num_videos, all_kept):
    environment, seeds, key = CountingEnvironment(48), np.arange(40), (0, "x")
    monkeypatch.setattr(evaluation, "RECORDING_BYTES", 8 * 49 * 16 * 16 * 3)  # batches of 8
    whole = rollout_policy(HalfSkilled(environment), environment, seeds, 1.0, key)
    successes, failures = np.flatnonzero(whole.success), np.flatnonzero(~whole.success)
    assert len(successes) > 8 and len(failures) > 8 and environment.num_unseen == 0
    outcomes, videos = rollout_outcomes(HalfSkilled(environment), environment, seeds, 1.0, key, num_videos)
    for name in ("actions", "lengths", "success", "seeds"):
        assert np.array_equal(getattr(outcomes, name), getattr(whole, name))
    assert np.array_equal(outcomes.frames[:, 0], whole.frames[:, 0]) and outcomes.frames.shape[1] == 1
    expected = whole.rows(np.concatenate([successes[:num_videos], failures[:num_videos]]))
    assert np.array_equal(videos.seeds, expected.seeds) and np.array_equal(videos.frames[:], expected.frames[:])
    assert (environment.num_unseen == 0) == all_kept


def test_demonstrations_come_in_batches_that_fit(monkeypatch):
    environment, seeds = PocketEnvironment(8), np.arange(5)
    first, rest = (
        rollout_expert(environment, part, 0.1, (0, *key)) for part, key in ((seeds[:3], ()), (seeds[3:], (3,)))
    )
    monkeypatch.setattr(evaluation, "RECORDING_BYTES", 3 * 9 * 16 * 16 * 3)
    parts = list(expert_batches(environment, seeds, 0.1, (0,)))
    for part, alone in zip(parts, (first, rest), strict=True):
        assert np.array_equal(part.actions, alone.actions) and np.array_equal(part.frames[:], alone.frames[:])
    assert np.array_equal(rollout_expert(environment, seeds, 0.1, (0,)).seeds, seeds)


def test_the_last_real_frame_repeats_after_the_end():
    environment = PocketEnvironment(48)
    episodes = rollout_policy(HalfSkilled(environment), environment, np.arange(8), 1.0, (0,))
    assert (episodes.lengths < 48).any()
    for length, video in zip(episodes.lengths, np.asarray(episodes.frames), strict=True):
        assert (video[length:] == video[length]).all()


def test_seeds_are_part_of_the_format():
    assert seed_for(0, "act", 1, 2, 3, 4) == 6105201775268436357
    assert seed_for(1, 23) != seed_for(12, 3)
