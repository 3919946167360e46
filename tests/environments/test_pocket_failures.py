"""Each way to fail can be reached, shows, and can be recovered from."""

import numpy as np

from wmpo_ray.environments.pocket.env import FAILURES, PocketEnvironment
from wmpo_ray.environments.pocket.geometry import BLOCK_HALF, SEATED_X, WALL_X

OPEN, CLOSE = -1.0, 1.0


def scene(block: tuple[float, float] = (5.0, 8.0), gripper: tuple[float, float] = (9.0, 8.0)) -> PocketEnvironment:
    env = PocketEnvironment(horizon=64)
    env.reset([0])
    env.block[:], env.gripper[:] = block, gripper
    return env


def go(env: PocketEnvironment, x: float, y: float, grip: float) -> np.ndarray:
    """One step towards (x, y) in pixels; returns the frame."""
    return env.step(np.array([[x / 8 - 1, y / 8 - 1, grip]]))[0][0]


def grasp(env: PocketEnvironment) -> None:
    go(env, *env.block[0], OPEN)
    go(env, *env.block[0], OPEN)
    go(env, *env.block[0], CLOSE)
    assert env.held[0]


def insert(env: PocketEnvironment, y: float) -> None:
    """Carry the held block to the pocket at height y and push it in."""
    for _ in range(3):
        go(env, 7.0, y, CLOSE)
    for _ in range(2):
        go(env, 14.0, y, CLOSE)


def succeeds_from_here(env: PocketEnvironment) -> bool:
    if not env.held[0]:
        grasp(env)
    insert(env, env.goal_y[0])
    return bool(env.success[0])


def seen(env: PocketEnvironment) -> set[str]:
    return {name for name in FAILURES if env.failures[name][0]}


def test_a_clean_episode_has_no_failure():
    env = scene()
    assert succeeds_from_here(env)
    assert env.terminated[0] and not seen(env)


def test_miss_then_grasp():
    env = scene()
    go(env, 7.5, 8.0, CLOSE)
    assert seen(env) == {"miss"} and not env.held[0]
    # A gripper that is already closed cannot grasp; it has to open first.
    go(env, *env.block[0], CLOSE)
    assert not env.held[0]
    assert succeeds_from_here(env)


def test_jam_then_back_off():
    env = scene()
    grasp(env)
    go(env, 14.0, 8.0, CLOSE)
    assert seen(env) == {"jam"} and np.isclose(env.block[0, 0], WALL_X - BLOCK_HALF)
    stuck_at = env.block[0].copy()
    go(env, 14.0, 7.3, CLOSE)
    assert np.array_equal(env.block[0], stuck_at)
    go(env, 7.0, 7.3, CLOSE)
    assert np.allclose(env.block[0], [7.0, 7.3])
    assert succeeds_from_here(env)


def test_drop_then_grasp_again():
    env = scene()
    grasp(env)
    go(env, 7.0, 6.0, CLOSE)
    go(env, 7.0, 6.0, OPEN)
    assert seen(env) == {"drop"} and not env.held[0]
    left_at = env.block[0].copy()
    go(env, 3.0, 3.0, OPEN)
    assert np.array_equal(env.block[0], left_at)
    assert succeeds_from_here(env)


def test_drop_in_the_mouth_of_a_pocket_then_grasp_again():
    env = scene()
    grasp(env)
    for _ in range(2):
        go(env, 7.0, env.goal_y[0], CLOSE)
    go(env, 11.0, env.goal_y[0], CLOSE)
    go(env, 11.0, env.goal_y[0], OPEN)
    assert seen(env) == {"drop"} and WALL_X < env.block[0, 0] + BLOCK_HALF and env.block[0, 0] < SEATED_X
    assert succeeds_from_here(env)


def test_wrong_pocket_then_the_right_one():
    env = scene()
    grasp(env)
    wrong = env.pocket_y[0][np.abs(env.pocket_y[0] - env.goal_y[0]) > 1][0]
    insert(env, wrong)
    assert seen(env) == {"wrong_pocket"} and not env.success[0] and not env.terminated[0]
    assert env.block[0, 0] >= SEATED_X
    assert succeeds_from_here(env)


def test_what_went_wrong_shows_in_the_frame():
    """Open, missed and held look different although gripper and block are in the same place."""
    frames = []
    for closed, held in ((False, False), (True, False), (True, True)):
        env = scene(gripper=(5.0, 8.0))
        env.closed[:], env.held[:] = closed, held
        frames.append(env.render()[0].astype(int))
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(frames[i] - frames[j]).max() > 40


def test_a_grasp_takes_the_block_within_reach_only():
    for distance, held in ((1.1, True), (1.3, False)):
        env = scene(gripper=(5.0 + distance, 8.0))
        go(env, 5.0 + distance, 8.0, CLOSE)
        assert env.held[0] == held
