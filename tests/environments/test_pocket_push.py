"""The task "push": the pocket task's scene and motion, two marks on the floor, and another end."""

import numpy as np
import pytest

from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.environments.pocket.geometry import MARK_DWELL, MARK_TOLERANCE
from wmpo_ray.environments.pocket.push import PushEnvironment
from wmpo_ray.environments.pocket.rendering import see_marks

OPEN, CLOSE = -1.0, 1.0


def carrying(to_goal: bool = True) -> PushEnvironment:
    """A scene whose block is in the gripper, on the mark that is wanted or on the other one."""
    env = PushEnvironment()
    env.reset([3], render=False)
    env.block[0] = env.marks[0, env.goal[0] if to_goal else 1 - env.goal[0]]
    env.gripper[:] = env.block
    env.closed[:] = env.held[:] = True
    return env


def stay(env: PushEnvironment, grip: float = CLOSE) -> bool:
    env.step(np.array([[*(env.block[0] / 8 - 1), grip]]), render=False)
    return bool(env.success[0])


def test_the_block_must_stay_on_its_mark():
    env = carrying()
    assert [stay(env) for _ in range(MARK_DWELL)] == [False] * (MARK_DWELL - 1) + [True]
    assert env.terminated[0] and not any(flags[0] for flags in env.failures.values())
    beside = carrying()
    beside.marks[0, beside.goal[0]] += MARK_TOLERANCE + 0.1
    assert not any(stay(beside) for _ in range(2 * MARK_DWELL))


def test_the_other_mark_is_a_mistake_that_can_be_made_good():
    env = carrying(to_goal=False)
    assert not any(stay(env) for _ in range(MARK_DWELL))
    assert {name for name, flags in env.failures.items() if flags[0]} == {"wrong_mark"}
    env.block[0] = env.gripper[0] = env.marks[0, env.goal[0]]
    assert [stay(env) for _ in range(MARK_DWELL)][-1]


@pytest.mark.parametrize("to_goal", [True, False])
def test_a_block_may_be_let_go_on_its_mark_only(to_goal):
    env = carrying(to_goal)
    stay(env, OPEN)
    assert env.failures["drop"][0] != to_goal


def test_scene_and_motion_are_those_of_the_pocket_task():
    push, pocket = PushEnvironment(ends_on_success=False), PocketEnvironment(ends_on_success=False)
    push.reset(np.arange(50), render=False)
    pocket.reset(np.arange(50), render=False)
    for name in ("gripper", "block", "pocket_y"):  # a scene whose block would lie on a mark is drawn again
        getattr(pocket, name)[:] = getattr(push, name)
    rng = np.random.default_rng(0)
    for _ in range(24):
        action = push.expert_action(rng)
        push.step(action, render=False)
        pocket.step(action, render=False)
        assert all(np.array_equal(a, b) for a, b in zip(push.state(), pocket.state(), strict=True))


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_expert_succeeds_and_pixels_show_what_happened(noise):
    env, rng = PushEnvironment(), np.random.default_rng(0)
    frames, actions = [env.reset(np.arange(100))], []
    assert np.nanmax(np.abs(see_marks(frames[0]) - env.marks)) < 0.8 and not np.isnan(see_marks(frames[0])).any()
    for _ in range(env.horizon):
        actions.append(env.expert_action(rng, noise))
        frames.append(env.step(actions[-1])[0])
    assert env.success.mean() >= 0.95
    videos = np.stack(frames, 1)
    seen = env.detect_failures(videos, np.stack(actions, 1), env.instruction, np.full(100, env.horizon))
    assert tuple(seen) == tuple(env.failures)
    assert all((seen[name] == env.failures[name]).mean() >= 0.9 for name in seen)
    events = env.detect_events(videos)
    assert (
        events["marked"][env.success].mean() >= 0.98
        and not env.detect_events(videos[:, :1].repeat(4, 1))["marked"].any()
    )
