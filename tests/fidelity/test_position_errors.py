"""Positions in videos against where things really were."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.recorded_pocket import recorded_episodes
from wmpo_ray.core.interfaces import AGENT
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.environments.pocket.rendering import draw
from wmpo_ray.fidelity.position_errors import Truth, position_errors, true_positions

HORIZON = 8


@pytest.fixture(scope="module")
def episodes():
    return recorded_episodes(6, HORIZON)


def video_of(environment: PocketEnvironment, block: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """Frames [N, 3, H, W, 3] of scenes in which nothing moves."""
    state = environment.state()
    frame = draw(environment.backdrop(), gripper, block, state.closed, state.held)
    return np.repeat(frame[:, None], 3, 1)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.0, 0.0), (-1.5, 2.0)])
def test_a_shifted_object_gives_its_shift(shift):
    environment = PocketEnvironment()
    environment.reset(np.arange(40), render=False)
    environment.gripper[:], environment.block[:] = (3.0, 3.0), (5.0, 11.0)
    here = {name: np.repeat(position[:, None], 3, 1) for name, position in environment.positions().items()}
    measure = position_errors(environment, Truth(here, np.ones(40, bool)))
    moved = measure(video_of(environment, environment.block + shift, environment.gripper))
    assert moved["object_error"] == pytest.approx(np.hypot(*shift), abs=0.02)
    assert moved["agent_error"] == pytest.approx(0, abs=0.02) and not moved["object_lost"].any()
    led = measure(video_of(environment, environment.block, environment.gripper + shift))
    assert led["agent_error"] == pytest.approx(np.hypot(*shift), abs=0.02)
    assert led["object_error"] == pytest.approx(0, abs=0.02)


def test_what_is_not_there_is_lost_and_has_no_error():
    environment = PocketEnvironment()
    environment.reset([1, 2], render=False)
    here = {name: np.repeat(position[:, None], 3, 1) for name, position in environment.positions().items()}
    empty = np.repeat(environment.backdrop()[:, None].round().astype(np.uint8), 3, 1)
    found = position_errors(environment, Truth(here, np.ones(2, bool)))(empty)
    assert np.isnan(found["object_error"]).all() and np.isnan(found["agent_error"]).all()
    assert (found["object_lost"] == 1).all()


def test_the_simulator_knows_where_things_were(episodes):
    environment = PocketEnvironment(HORIZON)
    truth = true_positions(environment, episodes)
    assert truth.simulated.all()
    environment.reset(episodes.seeds, render=False)
    for step in range(HORIZON):
        assert np.array_equal(truth.positions["block"][:, step], environment.block)
        assert np.array_equal(truth.positions[AGENT][:, step], environment.gripper)
        environment.advance(episodes.actions[:, step])


def test_episodes_that_it_cannot_repeat_are_read_from_their_frames(episodes):
    environment = PocketEnvironment(HORIZON)
    seeds = episodes.seeds.copy()
    seeds[0], seeds[1] = -1, 77  # of no scene, and of another one
    truth = true_positions(environment, replace(episodes, seeds=seeds))
    assert truth.simulated.tolist() == [False, False, True, True, True, True]
    read = environment.locate(np.asarray(episodes.frames))
    for name, positions in truth.positions.items():
        assert np.array_equal(positions[:2], read[name][:2])
    found = position_errors(environment, truth)(np.asarray(episodes.frames))
    assert not found["object_error"][:2].any() and found["object_error"][2:].any()


def test_an_environment_that_knows_no_positions_is_read_from(episodes):
    environment = PocketEnvironment(HORIZON)
    environment.abilities = environment.abilities - {"positions"}
    assert not true_positions(environment, episodes).simulated.any()
