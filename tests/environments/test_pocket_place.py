"""The task "place": the same scenes, motion and pixels, and a success that takes more."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.pocket_actions import random_actions
from wmpo_ray.config.dumping import config_differences
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.environments.pocket.geometry import PLACE_DWELL, SEATED_X
from wmpo_ray.registry import make_environment

OPEN, CLOSE = -1.0, 1.0


def held_in_the_pocket(ends_on_success: bool = True) -> PocketEnvironment:
    env = PocketEnvironment(task="place", ends_on_success=ends_on_success)
    env.reset([0], render=False)
    env.block[0] = SEATED_X + 0.5, env.goal_y[0]
    env.gripper[:] = env.block
    env.closed[:] = env.held[:] = True
    return env


def stay(env: PocketEnvironment, grip: float) -> bool:
    """One step in place; whether it is a success."""
    env.step(np.array([[*(env.block[0] / 8 - 1), grip]]), render=False)
    return bool(env.success[0])


def test_holding_the_block_in_its_pocket_is_no_success():
    env = held_in_the_pocket()
    assert not any(stay(env, CLOSE) for _ in range(2 * PLACE_DWELL))
    plain = PocketEnvironment()
    plain.restore([replace(seeded_starts([0])[0], saved_state=env.save()[0])])
    assert stay(plain, CLOSE)


def test_letting_go_for_long_enough_is_a_success():
    env = held_in_the_pocket()
    assert [stay(env, OPEN) for _ in range(PLACE_DWELL)] == [False] * (PLACE_DWELL - 1) + [True]
    assert env.terminated[0] and not any(flags[0] for flags in env.failures.values())


def test_taking_it_up_again_starts_the_count_again():
    env = held_in_the_pocket()
    for _ in range(3):
        for _ in range(PLACE_DWELL - 1):
            assert not stay(env, OPEN)
        assert not stay(env, CLOSE) and env.held[0]
    assert any(stay(env, OPEN) for _ in range(PLACE_DWELL))


def test_a_saved_scene_remembers_how_long_the_block_has_lain():
    env, other = held_in_the_pocket(), PocketEnvironment(task="place")
    for _ in range(PLACE_DWELL - 1):
        stay(env, OPEN)
    other.restore([replace(seeded_starts([9])[0], saved_state=env.save()[0])])
    assert stay(env, OPEN) and stay(other, OPEN)


def test_only_the_end_differs_from_the_plain_task():
    envs = [PocketEnvironment(task=task, ends_on_success=False) for task in ("", "place")]
    frames = [env.reset(np.arange(100)) for env in envs]
    rng, succeeded = np.random.default_rng(0), []
    for action in random_actions(100, 40, 11):
        action = np.where(rng.random((100, 1)) < 0.8, envs[1].expert_action(rng), action)
        frames = [env.step(action)[0] for env in envs]
        assert np.array_equal(*frames)
        succeeded.append([env.success.copy() for env in envs])
    plain, place = np.array(succeeded).any(0)
    assert place.any() and (plain | ~place).all() and (plain & ~place).any()


def test_the_hard_demo_is_the_demo_with_another_end():
    changed = {line.split(":")[0] for line in config_differences(load_config("demo"), load_config("demo-hard"))}
    assert changed == {"name", "environment.task", "environment.horizon"}


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_expert_lets_go_in_time(noise):
    env = make_environment(load_config("demo-hard").environment)
    env.reset(np.arange(200), render=False)
    rng = np.random.default_rng(0)
    for _ in range(env.horizon):
        env.step(env.expert_action(rng, noise), render=False)
    assert env.success.mean() >= 0.97


def test_an_unknown_task_names_the_setting():
    with pytest.raises(ValueError, match="set environment.task"):
        PocketEnvironment(task="stack")
