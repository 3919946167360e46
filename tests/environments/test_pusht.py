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
from wmpo_ray.environments.pusht.tee import BOARD
from wmpo_ray.registry import make_environment
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


def test_without_the_package_it_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    environment = make_environment(environment_section("pusht"))
    for make in (environment.check, lambda: environment.restore(seeded_starts([0]))):
        with pytest.raises(ConfigError) as caught:
            make()
        message = str(caught.value)
        assert message.startswith('environment.kind="pusht" needs the module gym_pusht, which cannot be imported (')
        assert message.endswith("pip install 'wmpo-ray[pusht]' or change environment.kind") and "\n" not in message
