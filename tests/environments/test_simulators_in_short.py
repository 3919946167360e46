"""One real episode in each simulator: done by its expert, drawn, restored in its middle, and done again by its actions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.implementations import environment_section, require_simulator
from wmpo_ray.core.starts import seeded_starts, start_seeds
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import execute_actions, rollout_expert

SEEDS = {"pusht": start_seeds("evaluate", 1, 0), "robosuite": start_seeds("evaluate", 1, 0)}


def made(kind: str):
    return make_environment(environment_section(kind))


@pytest.fixture(params=SEEDS)
def kind(request) -> str:
    require_simulator(request.param)
    return request.param


def test_an_episode_is_done_drawn_restored_and_done_again(kind):
    seeds = SEEDS[kind]
    episodes = rollout_expert(made(kind), seeds, 0.0, (0, "short"))
    length = int(episodes.lengths[0])
    assert episodes.success.all() and 5 < length <= made(kind).horizon
    video, actions = np.asarray(episodes.frames)[0, : length + 1], episodes.actions[:, :length]
    assert video.std() > 5 and all(not np.array_equal(a, b) for a, b in zip(video[:-1:5], video[5::5]))

    half, environment = length // 2, made(kind)
    environment.restore(seeded_starts(seeds))
    for step in range(half):
        environment.advance(actions[:, step])
    assert np.array_equal(environment.render()[0], video[half])
    other = environment
    if "restore" in environment.abilities:  # in another simulator, from a few hundred numbers
        (saved,) = environment.save()
        other = made(kind)
        other.restore([replace(start, saved_state=saved) for start in seeded_starts(seeds)])
        assert other.save() == [saved] and np.array_equal(other.render()[0], video[half])
    for step in range(half, length):
        other.advance(actions[:, step])
    assert other.success.all() and np.array_equal(other.render()[0], video[length])


def test_its_actions_do_it_again_from_the_seed_alone(kind):
    episodes = rollout_expert(made(kind), SEEDS[kind], 0.0, (0, "short"))
    assert execute_actions(made(kind), SEEDS[kind], episodes.actions).all()
