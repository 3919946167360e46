"""Rollouts: a request is a pure function of weights and request, whatever it is batched with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.implementations import make_starts, make_tiny
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Decision
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.core.types import GroupRequest, RolloutRequest
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.rollout import evaluation
from wmpo_ray.rollout.act import act
from wmpo_ray.rollout.evaluation import (
    execute_actions,
    expert_batches,
    is_recovery,
    rollout_expert,
    rollout_outcomes,
    rollout_policy,
)
from wmpo_ray.rollout.replay import replay
from wmpo_ray.rollout.requests import member_seeds, rollout_request
from wmpo_ray.rollout.video_choice import NUM_RECOVERIES


@pytest.fixture(scope="module")
def policy():
    return make_tiny()


@pytest.fixture(scope="module")
def world():
    return EnvironmentWorld(PocketEnvironment(8), 4)


def make_request(attempts: list[int], version: int = 0, run_seed: int = 0) -> RolloutRequest:
    starts = make_starts(4)
    groups = tuple(GroupRequest(2, a, a % 4, starts[a % 4], 3, run_seed) for a in attempts)
    return RolloutRequest(1, groups, version, 1.0)


def tokens(policy, world, request) -> np.ndarray:
    return rollout_request(policy, world, request, 2).trajectories.record["tokens"]


def test_shapes_and_alignment(policy, world):
    videos, trajectories, num_chunks = rollout_request(policy, world, make_request([0, 1]), num_chunks=2)
    assert videos.frames.shape == (6, 9, 16, 16, 3) and trajectories.frames.shape == (6, 2, 16, 16, 3)
    assert num_chunks == 12 and (trajectories.frames[:, 1] == videos.frames[:, 4]).all(), (
        "the policy decides on the newest frame"
    )
    assert (videos.actions.reshape(6, 2, 4, 3) == trajectories.actions).all()
    starts = make_starts(2)
    assert (videos.frames[:3, 0] == starts[0].frames[0]).all() and (videos.frames[3:, 0] == starts[1].frames[0]).all()


def test_a_group_is_the_same_alone_and_in_company(policy, world):
    together = rollout_request(policy, world, make_request([0, 1, 2]), 2)
    alone = rollout_request(policy, world, make_request([1]), 2)
    assert (together.trajectories.record["tokens"][3:6] == alone.trajectories.record["tokens"]).all()
    assert (together.videos.frames[3:6] == alone.videos.frames).all()


def test_members_differ_and_seeds_decide(policy, world):
    one, same = (tokens(policy, world, make_request([0])) for _ in range(2))
    other = tokens(policy, world, make_request([0], run_seed=1))
    assert (one == same).all() and not (one == other).all() and not (one[0] == one[1]).all()


def test_in_the_perfect_world_imagination_is_reality(policy, world):
    """The environment as world model gives the frames and outcomes that executing the actions gives."""
    request = make_request([0, 1])
    videos = rollout_request(policy, world, request, 2).videos
    environment = PocketEnvironment(8)
    seeds = [group.start.seed for group in request.groups for _ in range(3)]
    frames = [environment.reset(seeds)]
    for t in range(8):
        frames.append(environment.step(videos.actions[:, t])[0])
    assert (np.stack(frames, 1) == videos.frames).all()
    assert (execute_actions(PocketEnvironment(8), seeds, videos.actions) == environment.success).all()


def test_replayed_actions_give_the_same_videos(policy, world):
    request = make_request([0, 1])
    videos = rollout_request(policy, world, request, 2).videos
    seeds = member_seeds(request.members)
    assert (replay(world, videos.starts, videos.actions, seeds).frames == videos.frames).all()


def test_half_a_chunk_is_not_replayed(world):
    with pytest.raises(ValueError, match="6 actions are no whole number of chunks of 4"):
        replay(world, make_starts(1), np.zeros((1, 6, 3), np.float32), lambda purpose, chunk: [0])


def test_real_episodes_do_not_depend_on_the_batch(policy):
    together = rollout_policy(policy, PocketEnvironment(8), [3, 4, 5], 1.0, (0, "x"))
    alone = rollout_policy(policy, PocketEnvironment(8), [4], 1.0, (0, "x"), keep_frames=False)
    assert (together.actions[1] == alone.actions[0]).all() and together.success[1] == alone.success[0]


# -- episodes in batches -----------------------------------------------------------------------------------------------


class HalfSkilled:
    """Acts like the expert in every second scene and stands still in the others."""

    chunk_length = 2
    action_dim = 3

    def __init__(self, environment: PocketEnvironment):
        self.environment = environment

    def act(self, observation, temperature, seeds) -> Decision:
        actions = self.environment.expert_action(np.random.default_rng(0), 0.0)
        actions[::2] = 0.0
        return Decision(torch.from_numpy(actions)[:, None].repeat(1, 2, 1), {}, torch.zeros(len(actions), 1))


class CountingEnvironment(PocketEnvironment):
    num_pictures = 0

    def render(self):
        self.num_pictures += 1
        return super().render()


@pytest.mark.parametrize(("num_videos", "all_kept"), [(3, False), (100, True)])
def test_outcomes_do_not_depend_on_which_frames_are_kept(monkeypatch, num_videos, all_kept):
    environment, seeds, key = CountingEnvironment(48), np.arange(40), (0, "x")
    monkeypatch.setattr(evaluation, "RECORDING_BYTES", 8 * 49 * 16 * 16 * 3)  # batches of 8
    whole = rollout_policy(HalfSkilled(environment), environment, seeds, 1.0, key)
    successes, failures = np.flatnonzero(whole.success), np.flatnonzero(~whole.success)
    assert len(successes) > 8 and len(failures) > 8
    num_pictures, environment.num_pictures = environment.num_pictures, 0
    outcomes, videos = rollout_outcomes(HalfSkilled(environment), environment, seeds, 1.0, key, num_videos)
    for name in ("actions", "lengths", "success", "seeds"):
        assert np.array_equal(getattr(outcomes, name), getattr(whole, name))
    assert np.array_equal(outcomes.frames[:, 0], whole.frames[:, 0]) and outcomes.frames.shape[1] == 1
    asked = np.concatenate([successes[:num_videos], failures[:num_videos]])
    further = set(videos.seeds.tolist()) - set(asked.tolist())
    assert further <= set(np.flatnonzero(is_recovery(whole)).tolist()) and len(further) <= NUM_RECOVERIES
    expected = whole.rows(videos.seeds)
    assert set(asked.tolist()) <= set(videos.seeds.tolist()) and np.array_equal(videos.frames[:], expected.frames[:])
    assert environment.num_pictures == num_pictures if all_kept else environment.num_pictures < num_pictures


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


# -- early ends --------------------------------------------------------------------------------------------------------


SCENES, LONG = [0, 1, 2, 3, 4], 64


class Recorded:
    """A policy that repeats an expert's actions; what it records is which decision this is, and its seed."""

    chunk_length, action_dim = 4, 3

    def __init__(self, world: EnvironmentWorld):
        episodes = rollout_expert(PocketEnvironment(LONG), SCENES, 0.0, (0,))
        self.actions = dict(zip(SCENES, torch.from_numpy(episodes.actions), strict=True))
        self.lengths = dict(zip(SCENES, episodes.lengths.tolist(), strict=True))
        self.world, self.num_decisions = world, 0

    def act(self, observation, temperature, seeds):
        scenes = [start.seed for start in self.world._present.starts]
        chunk = len(self.world._present.chunks)
        self.num_decisions += 1
        actions = torch.stack([self.actions[scene][4 * chunk : 4 * chunk + 4] for scene in scenes])
        number = torch.tensor(seeds)[:, None]
        return Decision(actions, {"chunk": torch.full((len(scenes), 1), chunk), "seed": number}, number.float())


def expert_rollout(scenes: list[int], past_end: bool = False):
    world = EnvironmentWorld(PocketEnvironment(LONG), 4)
    policy = Recorded(world)

    def seeds_of(purpose: str, chunk: int) -> list[int]:
        return [1000 * scene + chunk for scene in scenes]

    rollout = act(policy, world, seeded_starts(scenes), LONG // 4, 1.0, seeds_of, past_end=past_end)
    return rollout, policy


def test_the_loop_ends_with_the_last_trajectory_and_keeps_its_shapes():
    rollout, policy = expert_rollout(SCENES)
    lengths = np.array([policy.lengths[scene] for scene in SCENES])
    assert len(set((lengths - 1) // 4)) > 1, "they end in different chunks"
    assert policy.num_decisions == (lengths.max() - 1) // 4 + 1 < LONG // 4
    assert rollout.success.all() and (rollout.lengths == lengths).all()
    assert rollout.frames.shape == (5, LONG + 1, 16, 16, 3) and rollout.actions.shape == (5, LONG // 4, 4, 3)
    assert rollout.observations.frames.shape == (5, LONG // 4, 16, 16, 3)
    for row, length in enumerate(lengths):
        last = (length - 1) // 4
        assert (rollout.frames[row, length:] == rollout.frames[row, length]).all()
        for values in (rollout.record["seed"], rollout.behavior_logprobs, rollout.actions, rollout.observations.frames):
            assert (values[row, last:] == values[row, last]).all(), "the last decision repeats"


def test_a_trajectory_that_has_ended_is_the_same_beside_any_others():
    together, _ = expert_rollout(SCENES)
    for row, scene in enumerate(SCENES):
        alone, _ = expert_rollout([scene])
        for one, other in (
            (alone.record["chunk"], together.record["chunk"]),
            (alone.actions, together.actions),
            (alone.behavior_logprobs, together.behavior_logprobs),
            (alone.frames, together.frames),
            (alone.observations.frames, together.observations.frames),
        ):
            assert np.array_equal(one[0], other[row])


def test_past_the_end_every_decision_is_kept():
    """For a judge that watches videos and may not notice the end."""
    rollout, policy = expert_rollout(SCENES, past_end=True)
    assert policy.num_decisions == LONG // 4
    assert (rollout.record["chunk"][:, :, 0] == np.arange(LONG // 4)).all()
    stopped, _ = expert_rollout(SCENES)
    assert np.array_equal(rollout.frames, stopped.frames) and np.array_equal(rollout.lengths, stopped.lengths)


def test_without_an_expert_there_are_no_demonstrations():
    environment = PocketEnvironment(8)
    environment.abilities = frozenset()
    with pytest.raises(ConfigError, match="no scripted expert"):
        rollout_expert(environment, [0], 0.0, (0,))


def test_seeds_are_part_of_the_format():
    assert seed_for(0, "act", 1, 2, 3, 4) == 6105201775268436357
    assert seed_for(1, 23) != seed_for(12, 3)
