"""A world as a gymnasium environment: gymnasium's own checkers and vector environments say whether it is one."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.support.small_world import EMBEDDED, scene_starts, small_world_model
from wmpo_ray.core.interfaces import World
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.imagined import ImaginedEnv, ImaginedVectorEnv
from wmpo_ray.environments.pocket.env import INSTRUCTIONS, PocketEnvironment
from wmpo_ray.reward_models.decisions import score_videos
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import NetworkRewardConfig
from wmpo_ray.rollout.fidelity import replay_videos
from wmpo_ray.rollout.judged_world import JudgedWorld
from wmpo_ray.rollout.replay import replay

CHUNKS, HORIZON, NUM = 3, 12, 3
MODES, SIDE_BY_SIDE = list(AutoresetMode), 6


def judge_of(world: World) -> VideoMAERewardModel:
    """Untrained, with a threshold that half of some episodes reach."""
    model = VideoMAERewardModel.create(NetworkRewardConfig(clip_length=4), 16, INSTRUCTIONS, seed=3)
    with torch.no_grad():
        model.network.classifier.weight.normal_(0, 1, generator=torch.Generator().manual_seed(0))
    starts = scene_starts(6)
    videos = replay_videos(world, starts, chunks(CHUNKS, 6, 1).swapaxes(0, 1).reshape(6, HORIZON, 3), seed=0)
    model.threshold = float(np.median(model.probabilities(videos, [start.instruction for start in starts]).max(1)))
    return model


@pytest.fixture(scope="module")
def learned():
    world = small_world_model(EMBEDDED, num_steps=1)
    judge = judge_of(world)
    return lambda: JudgedWorld(world, judge, 2, HORIZON)


@pytest.fixture(scope="module")
def simulated():
    judge = judge_of(EnvironmentWorld(PocketEnvironment(HORIZON), 4))
    return lambda: JudgedWorld(EnvironmentWorld(PocketEnvironment(HORIZON), 4), judge, 2, HORIZON)


def environments(make_world, num: int = NUM, mode: Any = AutoresetMode.NEXT_STEP) -> ImaginedVectorEnv:
    return ImaginedVectorEnv(make_world, scene_starts(6), num, CHUNKS, 3, mode)


def chunks(num_steps: int, num: int = NUM, seed: int = 0) -> np.ndarray:
    """Actions [num_steps, num, 4, 3]."""
    return np.random.default_rng(seed).uniform(-1, 1, (num_steps, num, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", ["learned", "simulated"])
def test_passes_the_checker_without_a_warning(kind, request):
    vector = environments(request.getfixturevalue(kind), 1, AutoresetMode.DISABLED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(ImaginedEnv(vector), skip_render_check=True)


def same(one: Any, other: Any) -> bool:
    """Whether two infos or observations hold the same, whatever the order of their keys."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) and one.dtype == object:
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return one is other or np.array_equal(one, other)


@pytest.mark.parametrize("mode", MODES)
def test_side_by_side_they_are_what_gymnasium_makes_of_single_ones(simulated, mode):
    """Observations, rewards, ends and infos in all three modes of autoreset, over several episodes of each."""
    ours = environments(simulated, NUM, mode)
    singles = [lambda: ImaginedEnv(environments(simulated, 1, AutoresetMode.DISABLED)) for _ in range(NUM)]
    theirs = SyncVectorEnv(singles, autoreset_mode=mode)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == mode
    assert same(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    num_ends = np.zeros(2, int)
    for actions in chunks(9):
        one, other = ours.step(actions), theirs.step(actions)
        for a, b in zip(one, other, strict=True):
            assert same(a, b)
        ended = one[2] | one[3]
        num_ends += one[2].sum(), one[3].sum()
        if mode is AutoresetMode.DISABLED and ended.any():
            with pytest.raises(ValueError, match="have ended: reset them first"):
                ours.step(actions)
            options = {"reset_mask": ended}
            assert same(ours.reset(options=options)[0], theirs.reset(options=options)[0])
    assert num_ends.min() > 0, "no episode succeeded, or none lasted to the end"


def test_the_reward_is_the_decision_about_the_whole_video(learned):
    """The frames of an episode, judged together as the training loop judges them."""
    env = environments(learned, SIDE_BY_SIDE)
    env.reset(seed=3)
    num = SIDE_BY_SIDE
    starts = [env._next_start(i) for i in range(num)]  # of the next episodes
    env.reset()
    actions, rewards, lengths = chunks(CHUNKS, num), np.zeros(num), np.zeros(num, int)
    for number, chunk in enumerate(actions):
        _, reward, terminated, truncated, _ = env.step(chunk)
        going = lengths == 0
        rewards += reward * going
        lengths[going & (terminated | truncated)] = number + 1

    def seeds_of(purpose: str, number: int) -> list[int]:
        return [seed_for(3 + i, "imagined-step", 2, number) for i in range(num)]

    judged = learned()
    videos = replay(judged.world, starts, actions.swapaxes(0, 1).reshape(num, HORIZON, 3), seeds_of).frames
    assert videos is not None
    scores = score_videos(judged.reward_model, videos, [start.instruction for start in starts], 2)
    assert rewards.tolist() == scores.success.astype(float).tolist() and 0 < rewards.sum() < num
    assert lengths.tolist() == np.where(scores.success, -(-scores.finish_step // 4), CHUNKS).tolist()


def test_an_episode_depends_on_its_own_seed_and_actions_alone(learned):
    """Others beside it may do what they like; it begins anew, and goes on, the same."""
    seen = []
    for others in (0, 1):
        env = environments(learned)
        env.reset(seed=[7, 100 + others, 200 + others])
        actions = chunks(8, seed=others)
        actions[:, 0] = chunks(8)[:, 0]
        made = [env.step(chunk) for chunk in actions]
        seen.append([(step[0]["main"][0], *(values[0] for values in step[1:4])) for step in made])
    for one, other in zip(*seen, strict=True):
        assert np.array_equal(one[0], other[0]) and one[1:] == other[1:]
    assert any(step[2] or step[3] for step in seen[0][:-1]), "no second episode was begun"


def test_mistakes_are_named(learned):
    with pytest.raises(ValueError, match="0 starts, 2 environments"):
        ImaginedVectorEnv(learned, [], 2, CHUNKS, 3)
    env = environments(learned)
    with pytest.raises(ValueError, match="reset comes before the first step"):
        env.step(chunks(1)[0])
    with pytest.raises(ValueError, match="2 seeds for 3 environments"):
        env.reset(seed=[1, 2])
    env.reset(seed=1)
    with pytest.raises(ValueError, match=r"actions of shape \(3, 2, 3\)"):
        env.step(np.zeros((3, 2, 3), np.float32))
    with pytest.raises(ValueError, match="reset_mask of shape"):
        env.reset(options={"reset_mask": np.zeros(3, bool)})


def test_observations_are_in_their_space_and_name_the_instruction(learned):
    env = environments(learned)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space and isinstance(env.single_observation_space, gymnasium.spaces.Dict)
    assert {env.instructions[number] for number in observation["instruction"]} <= set(INSTRUCTIONS)
    observation, *_ = env.step(np.full((NUM, 4, 3), 9.0, np.float32))  # beyond the bounds: clipped, not refused
    assert observation in env.observation_space
