"""The gymnasium interface says the same as the environment behind it."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from wmpo_ray.environments.pocket.env import INSTRUCTIONS, PocketEnvironment
from wmpo_ray.environments.pocket.gym import ENVIRONMENT_ID, PocketGymEnv


def play_expert(env: gymnasium.Env):
    """Follow the scripted expert to the end of the episode."""
    rng, steps = np.random.default_rng(0), []
    while not steps or not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(env.unwrapped.environment.expert_action(rng)[0]))
    return steps


def test_passes_the_checker_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ENVIRONMENT_ID).unwrapped)
        check_env(gymnasium.make(ENVIRONMENT_ID, render_mode="rgb_array").unwrapped)


def test_reset_with_a_seed_is_that_scene():
    env = PocketGymEnv()
    image, info = env.reset(seed=7)
    scene = PocketEnvironment()
    assert np.array_equal(image, scene.reset([7])[0])
    assert info["scene_seed"] == 7 and info["instruction"] == scene.instruction[0]


def test_reset_without_a_seed_goes_on_from_the_last_one():
    one, other = PocketGymEnv(), PocketGymEnv()
    one.reset(seed=7), other.reset(seed=7)
    images = [env.reset()[0] for env in (one, other)]
    assert np.array_equal(*images)
    assert not np.array_equal(one.reset()[0], images[0])


def test_success_gives_one_reward_and_terminates():
    env = gymnasium.make(ENVIRONMENT_ID)
    env.reset(seed=1)
    steps = play_expert(env)
    assert [reward for _, reward, *_ in steps] == [0.0] * (len(steps) - 1) + [1.0]
    _, _, terminated, truncated, info = steps[-1]
    assert terminated and not truncated and info["success"] and info["instruction"] in INSTRUCTIONS
    # The scene is frozen: a step too many earns nothing.
    assert env.unwrapped.step(np.zeros(3, np.float32))[1] == 0.0


def test_the_horizon_truncates():
    env = PocketGymEnv(horizon=5)
    env.reset(seed=0)
    ends = [env.step(np.array([-1, -1, -1], np.float32))[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


def test_render_enlarges_the_observation():
    env = PocketGymEnv(render_mode="rgb_array")
    image, _ = env.reset(seed=0)
    assert np.array_equal(env.render()[::16, ::16], image)


def test_vectorised_by_gymnasium():
    envs = gymnasium.make_vec(ENVIRONMENT_ID, num_envs=2, vectorization_mode="sync")
    images, _ = envs.reset(seed=[3, 4])
    assert np.array_equal(images, PocketEnvironment().reset([3, 4]))
    envs.close()


@pytest.mark.parametrize("keys", [{"render_mode": "human"}, {"disruption": "fog"}])
def test_unknown_options_are_refused(keys):
    with pytest.raises(ValueError, match="known are"):
        PocketGymEnv(**keys)
