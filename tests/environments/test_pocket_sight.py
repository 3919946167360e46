"""Failures and positions of the pocket task, read from pixels, against what the simulator knows."""

import numpy as np
import pytest

from tests.support.recorded_pocket import recorded_episodes
from wmpo_ray.environments.pocket.env import FAILURES, PocketEnvironment


@pytest.fixture(scope="module")
def episodes():
    return recorded_episodes(300, 24, noise=0.9)


def read(episodes, frames=None, lengths=None) -> dict[str, np.ndarray]:
    frames = episodes.frames if frames is None else frames
    lengths = episodes.lengths if lengths is None else lengths
    return PocketEnvironment.detect_failures(frames, episodes.actions, episodes.instructions, lengths)


def test_failures_are_those_of_the_simulator(episodes):
    found = read(episodes)
    assert tuple(found) == FAILURES
    for name, flags in found.items():
        assert flags.shape == (300,) and flags.dtype == bool
        assert (flags == episodes.failures[name]).mean() > 0.92, name
    assert episodes.failures["miss"].mean() > 0.2 and episodes.failures["jam"].any()


def one_scene(actions: list[tuple[float, float, float]], block=(5.0, 4.0), gripper=(5.0, 4.0)):
    """Frames [1, T+1, H, W, 3], actions and instructions of a scene with a pocket at 4 and another at 12."""
    environment = PocketEnvironment(len(actions), ends_on_success=False)
    environment.reset([0], render=False)
    environment.block[:], environment.gripper[:], environment.pocket_y[:] = block, gripper, (4.0, 12.0)
    frames, moves = [environment.render()], (np.array(actions) - (8, 8, 0)) / (8, 8, 1)
    for move in moves:
        frames.append(environment.step(move[None])[0])
    failures = {name: bool(flags[0]) for name, flags in environment.failures.items()}
    seen = environment.detect_failures(
        np.stack(frames, 1), moves[None], environment.instruction, np.array([len(moves)])
    )
    return failures, {name: bool(flags[0]) for name, flags in seen.items()}


GRASP = [(5, 4, 1), (5, 4, 1)]


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ([(8, 10, 1), (8, 10, 1)], {"miss"}),
        ([*GRASP, (7, 8, 1), (12, 8, 1), (12, 8, 1)], {"jam"}),
        ([*GRASP, (7, 7, 1), (7, 7, -1), (3, 3, -1)], {"drop"}),
        ([*GRASP, (7, 4, 1), (8, 4, 1), (8, 4, 1)], set()),
    ],
)
def test_each_failure_is_seen_where_it_happens(actions, expected):
    failures, seen = one_scene(actions)
    names = {"miss", "jam", "drop"}
    assert {name for name in names if failures[name]} == expected
    assert {name for name in names if seen[name]} == expected


@pytest.mark.parametrize("pocket", [4.0, 12.0])
def test_the_wrong_pocket_is_told_from_the_right_one_by_its_colour(pocket):
    actions = [(5, 4, 1), (5, 4, 1), (6, pocket, 1), (6, pocket, 1), (11, pocket, 1), (14, pocket, 1), (14, pocket, 1)]
    failures, seen = one_scene(actions)
    assert seen["wrong_pocket"] == failures["wrong_pocket"] and not seen["jam"]


def test_what_comes_after_the_end_does_not_count(episodes):
    nothing = read(episodes, lengths=np.zeros(300, np.int64))
    assert not any(flags.any() for flags in nothing.values())


def test_positions_are_found_where_they_are(episodes):
    environment = PocketEnvironment(24)
    environment.reset(episodes.seeds, render=False)
    for step in range(25):
        found, real = environment.locate(np.asarray(episodes.frames)[:, step]), environment.positions()
        for name, positions in real.items():
            assert np.nanmean(np.linalg.norm(found[name] - positions, axis=-1)) < 0.3, (name, step)
        if step < 24:
            environment.advance(episodes.actions[:, step])
