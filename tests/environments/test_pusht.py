"""PushT with its real simulator: scenes, pictures, failures, and an expert that succeeds."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.support.implementations import environment_section, random_actions, require_simulator
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.starts import seeded_starts, start_seeds
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.pusht.tee import AGENT_RADIUS, BOARD, GOAL, corner_error, distance_to_tee
from wmpo_ray.registry import make_environment, make_play
from wmpo_ray.rollout.evaluation import execute_actions, rollout_expert


@pytest.fixture
def simulator():
    require_simulator("pusht")


def scenes(num: int = 1, **settings):
    environment = make_environment(environment_section("pusht", **settings))
    environment.restore(seeded_starts(range(num)))
    return environment


def expert_episode(environment, steps: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(steps):
        environment.advance(environment.expert_action(rng))


def test_facts_are_those_of_the_scenes(simulator):
    facts, environment = environment_facts(environment_section("pusht", image_size=48)), scenes(image_size=48)
    assert facts[:3] == (environment.frame_shape, environment.action_dim, environment.instructions)
    assert environment.render().shape == (1, 48, 48, 3)


def test_a_seed_is_a_scene_bit_for_bit_and_frames_show_it(simulator):
    one, other = scenes(3), scenes(3)
    assert np.array_equal(one.render(), other.render())
    assert len({frame.tobytes() for frame in one.render()}) == 3
    frame = scenes(image_size=128).render()[0]
    x, y = (np.array(scenes()._scene(0).agent) / BOARD * 128).astype(int)
    red, _, blue = frame[y, x].astype(int)
    assert blue > red + 60, "the agent is blue, and x goes to the right"
    green = (frame[..., 1].astype(int) - frame[..., 0] > 60).sum()
    assert green > 50, "the goal is green"


def test_an_action_is_the_place_that_the_agent_moves_to(simulator):
    environment = scenes()
    target = np.array([100.0, 60.0])
    for _ in range(10):
        environment.advance((2 * target[None] / BOARD - 1).astype(np.float32))
    np.testing.assert_allclose(environment._scene(0).agent, target, atol=0.5)


def test_the_expert_succeeds_on_held_out_scenes_and_its_actions_do_it_again(simulator):
    environment = make_environment(environment_section("pusht"))
    seeds = start_seeds("evaluate", 4, 0)
    episodes = rollout_expert(environment, seeds, 0.0, (0, "expert"))
    assert episodes.success.all() and (episodes.lengths < environment.horizon).all()
    assert not episodes.failures["never_moved"].any()
    again = execute_actions(make_environment(environment_section("pusht")), seeds, episodes.actions)
    assert again.all()


def test_the_expert_copes_with_noise(simulator):
    episodes = rollout_expert(scenes(), start_seeds("demos", 4, 0), 0.2, (0, "demos"))
    assert episodes.success.all()


def test_as_a_world_it_rebuilds_touched_scenes_exactly(simulator):
    world = EnvironmentWorld(make_environment(environment_section("pusht")), 4)
    state, _ = world.start(seeded_starts(range(3)))
    rng = np.random.default_rng(0)
    for _ in range(3):
        state, _ = world.step_expert(state, rng, 0.0)
    assert not world.environment.failures["never_moved"].all()
    actions = random_actions(3, 4, dim=2)
    _, first = world.step_chunk(state, actions, [0] * 3)
    world.start(seeded_starts([7]))
    _, again = world.step_chunk(state, actions, [0] * 3)
    assert np.array_equal(first.frames, again.frames) and np.array_equal(first.success, again.success)


def test_a_lower_coverage_is_reached_earlier(simulator):
    lengths = []
    for coverage in (0.95, 0.6):
        environment = make_environment(environment_section("pusht", success_coverage=coverage))
        episodes = rollout_expert(environment, np.arange(2), 0.0, (0, "expert"))
        assert episodes.success.all()
        lengths.append(episodes.lengths)
    assert (lengths[1] < lengths[0]).all()


def test_failures_are_what_happened(simulator):
    environment = scenes()
    stay = 2 * np.array([environment._scene(0).agent], np.float32) / BOARD - 1
    for _ in range(5):
        environment.advance(stay)
    assert environment.failures["never_moved"].all() and not environment.success.any()
    environment = scenes(success_coverage=0.99)
    expert_episode(environment, 30)
    assert not environment.failures["never_moved"].any() and environment._best_coverage[0] > 0.75
    assert not environment.failures["pushed_out"].any()
    for target in ((0, 0), (0.9, 0.9), (-0.9, 0.9), (0.9, -0.9), (0, 0), (-0.9, -0.9)):  # across the board and back
        for _ in range(6):
            environment.advance(np.array([target], np.float32))
    assert environment.failures["pushed_out"].all() and not environment.failures["never_moved"].any()


NEAR = {"field": 280, "start_spread": 0.15, "success_coverage": 0.8, "expert": "steps", "image_size": 24, "horizon": 28}


def test_on_a_field_frames_show_what_actions_name(simulator):
    environment = scenes(**NEAR)
    for action in ((-0.9, 0.8), (0.9, 0.9)):  # beside the T
        for _ in range(10):
            environment.advance(np.array([action], np.float32))
        place = (np.array(action) + 1) / 2 * 24  # so that an action more by 2 / 24 is a pixel further
        np.testing.assert_allclose(environment.positions()["agent"][0], place, atol=0.05)
        np.testing.assert_allclose(environment.locate(environment.render())["agent"][0], place, atol=0.3)
    layout = environment_facts(environment_section("pusht", **NEAR)).layout
    layout.check(environment.frame_shape, environment.action_dim)
    assert {shift.action_per_pixel for shift in layout.shifts} == {2 / 24}
    assert environment_facts(environment_section("pusht")).layout.mirror is None, "walls are in sight"


def test_starts_are_as_near_as_they_are_asked_for_and_nothing_touches(simulator):
    far, near = (scenes(12, **{**NEAR, "start_spread": spread}) for spread in (0.3, 0.1))
    errors = [np.array([corner_error(np.array(scene.block), GOAL) for scene in each.scenes()]) for each in (far, near)]
    assert (errors[1] < 0.6 * errors[0]).all()
    for environment in (far, near):
        for scene in environment.scenes():
            assert distance_to_tee(np.array([scene.agent]), np.array(scene.block))[0] > AGENT_RADIUS + 1
            assert environment.field.contains(np.array([scene.agent]))[0]
    again = scenes(12, **{**NEAR, "start_spread": 0.1})
    assert np.array_equal(again.render(), near.render())


def test_an_expert_without_memory_says_the_same_of_the_same_scene(simulator):
    one, other, rng = scenes(2, **NEAR), scenes(2, **NEAR), np.random.default_rng(0)
    for step in range(6):
        action = one.expert_action(rng)
        if step == 5:
            assert np.array_equal(action, other.expert_action(rng)), "it was never asked before"
        one.advance(action)
        other.advance(action)


def test_an_expert_without_memory_succeeds_near_the_goal_and_pixels_show_it(simulator):
    environment = make_environment(environment_section("pusht", **NEAR))
    episodes = rollout_expert(environment, start_seeds("evaluate", 8, 0), 0.3, (0, "expert"))
    assert episodes.success.all() and episodes.lengths.mean() < 20
    frames = np.asarray(episodes.frames)
    last = frames[np.arange(8), episodes.lengths][:, None]
    assert environment.detect_events(last)["covered"].mean() > 0.8
    assert not environment.detect_events(frames[:, :1])["covered"].any()


def test_play_is_reproducible_and_moves_the_t_in_many_ways(simulator):
    config = environment_section("pusht", **NEAR)
    first, again = (next(iter(make_play(config, 6, seed=2))) for _ in range(2))
    assert np.array_equal(first.frames, again.frames) and np.array_equal(first.actions, again.actions)
    assert first.frames.shape == (6, 29, 24, 24, 3) and first.contact.shape == (6, 28)
    assert np.abs(first.actions).max() <= 1 and 0.1 < first.contact.mean() < 0.9
    other = next(iter(make_play(config, 6, seed=3)))
    assert not np.array_equal(first.frames, other.frames)
    still = scenes(6, **NEAR).locate(first.frames)["tee"]
    moved = np.hypot(*(still - still[:, :1]).transpose(2, 0, 1))
    assert (np.nanmax(moved, 1) > 1).mean() > 0.5, "most T are moved by more than a pixel"


def test_a_start_beyond_the_field_is_refused():
    with pytest.raises(
        ValueError, match=r"environment\.start_spread = 1\.0: the T would start beyond environment\.field"
    ):
        environment_section("pusht", field=280)


def test_without_the_package_it_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    environment = make_environment(environment_section("pusht"))
    for make in (environment.check, lambda: environment.restore(seeded_starts([0]))):
        with pytest.raises(ConfigError) as caught:
            make()
        message = str(caught.value)
        assert message.startswith('environment.kind="pusht" needs the module gym_pusht, which cannot be imported (')
        assert message.endswith("pip install 'wmpo-ray[pusht]' or change environment.kind") and "\n" not in message
