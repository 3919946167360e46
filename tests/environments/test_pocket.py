"""Laws of the pocket task: scenes, actions, ends."""

import numpy as np
import pytest

from tests.support.pocket_actions import random_actions
from wmpo_ray.core.interfaces import Environment
from wmpo_ray.environments.pocket.env import INSTRUCTIONS, PocketEnvironment
from wmpo_ray.environments.pocket.geometry import BLOCK_HALF, MAX_SPEED, POCKET_END_X, POCKET_TOLERANCE, WALL_X

STATE = ("gripper", "block", "closed", "held", "terminated", "success", "num_steps")


def test_implements_the_protocol_before_and_after_a_reset():
    env = PocketEnvironment()
    assert isinstance(env, Environment) and env.success.shape == (0,)
    env.reset([0])
    assert isinstance(env, Environment) and env.success.shape == (1,)


def test_unknown_disruption_names_the_setting():
    with pytest.raises(ValueError, match="environment.disruption"):
        PocketEnvironment(disruption="fog")


def test_same_seed_is_the_same_scene_whatever_was_played_before():
    fresh, used = PocketEnvironment(), PocketEnvironment()
    used.reset([9, 8, 7])
    used.step(random_actions(3, 1, 0)[0])
    frames = fresh.reset([5, 6])
    assert np.array_equal(frames, used.reset([5, 6]))
    assert not np.array_equal(frames[0], frames[1])
    assert fresh.instruction == used.instruction


def test_every_scene_starts_open_and_unsolved_and_both_instructions_occur():
    env = PocketEnvironment()
    env.reset(np.arange(300), render=False)
    assert not (env.closed | env.held | env.terminated | env.success).any()
    assert (env.block[:, 0] + BLOCK_HALF <= WALL_X).all()
    assert (np.abs(env.gripper - env.block).max(1) > 2.5).all()
    assert set(env.instruction) == set(INSTRUCTIONS)
    # Neither colour nor instruction gives the height away.
    assert 0.4 < (env.goal_y > 8).mean() < 0.6


def test_expert_succeeds():
    env = PocketEnvironment()
    env.reset(np.arange(200), render=False)
    rng = np.random.default_rng(0)
    for _ in range(env.horizon):
        env.step(env.expert_action(rng), render=False)
    assert env.success.mean() >= 0.99
    assert env.num_steps.mean() < 16


def test_untrained_actions_hardly_ever_succeed():
    env = PocketEnvironment()
    env.reset(np.arange(400), render=False)
    rng = np.random.default_rng(0)
    for _ in range(env.horizon):
        env.step(rng.uniform(-1, 1, (400, 3)), render=False)
    assert env.success.mean() < 0.05


def test_batch_equals_single_scenes():
    seeds, actions = [3, 14, 15], random_actions(3, 24, 1)
    batch = PocketEnvironment(ends_on_success=False)
    frames = [batch.reset(seeds)] + [batch.step(action)[0] for action in actions]
    for i, seed in enumerate(seeds):
        single = PocketEnvironment(ends_on_success=False)
        alone = [single.reset([seed])] + [single.step(action[i : i + 1])[0] for action in actions]
        assert np.array_equal(np.stack(alone)[:, 0], np.stack(frames)[:, i])
        for name in STATE:
            assert np.array_equal(getattr(single, name)[0], getattr(batch, name)[i]), name
        assert single.instruction == batch.instruction[i : i + 1]


def test_actions_are_clipped():
    wild = random_actions(20, 12, 2) * 4
    one, other = PocketEnvironment(), PocketEnvironment()
    one.reset(np.arange(20)), other.reset(np.arange(20))
    for action in wild:
        assert np.array_equal(one.step(action)[0], other.step(action.clip(-1, 1))[0])


def test_gripper_moves_at_a_bounded_speed_and_arrives():
    env = PocketEnvironment()
    env.reset(np.arange(50), render=False)
    target = np.array([0.25, -0.5])
    for _ in range(4):
        before = env.gripper.copy()
        env.step(np.tile([*target, -1.0], (50, 1)), render=False)
        assert np.abs(env.gripper - before).max() <= MAX_SPEED + 1e-9
    assert np.allclose(env.gripper, 8 + 8 * target)


def test_success_freezes_a_scene_and_only_that_scene():
    env = PocketEnvironment()
    env.reset(np.arange(40), render=False)
    rng = np.random.default_rng(0)
    # Half of the scenes do nothing.
    idle = np.arange(40) % 2 == 0
    for _ in range(20):
        action = env.expert_action(rng)
        action[idle] = [0, 0, -1]
        frames, terminated = env.step(action)
    assert terminated[~idle].all() and not terminated[idle].any()
    kept = {name: getattr(env, name)[~idle].copy() for name in STATE}
    failures = {name: flags[~idle].copy() for name, flags in env.failures.items()}
    for action in random_actions(40, 6, 3):
        later, terminated = env.step(action)
    assert np.array_equal(later[~idle], frames[~idle]) and not np.array_equal(later[idle], frames[idle])
    for name, value in kept.items():
        assert np.array_equal(getattr(env, name)[~idle], value), name
    for name, value in failures.items():
        assert np.array_equal(env.failures[name][~idle], value), name


def test_the_block_is_never_inside_the_wall():
    env = PocketEnvironment(ends_on_success=False)
    env.reset(np.arange(300), render=False)
    visits = 0
    for action in random_actions(300, 90, 4):
        env.step(action, render=False)
        x, y = env.block.T
        inside = x + BLOCK_HALF > WALL_X + 1e-6
        off_axis = np.abs(y[:, None] - env.pocket_y).min(1)
        assert (off_axis[inside] <= POCKET_TOLERANCE + 1e-9).all()
        assert (x + BLOCK_HALF <= POCKET_END_X + 1e-9).all() and (x >= BLOCK_HALF - 1e-9).all()
        visits += int((inside & env.held).sum())
    assert visits > 100 and env.failures["jam"].any()


def test_the_world_has_a_mirror_image():
    """Upside down, with actions upside down, it is the same world: training may flip its samples."""
    env, mirror = PocketEnvironment(ends_on_success=False), PocketEnvironment(ends_on_success=False)
    env.reset(np.arange(60), render=False), mirror.reset(np.arange(60), render=False)
    for name in ("gripper", "block"):
        getattr(mirror, name)[:, 1] = 16 - getattr(env, name)[:, 1]
    mirror.pocket_y = 16 - env.pocket_y
    for action in random_actions(60, 40, 5):
        frames, _ = env.step(action)
        mirrored, _ = mirror.step(action * [1, -1, 1])
        assert np.abs(frames[:, ::-1].astype(int) - mirrored).max() <= 1
    assert env.held.any()
