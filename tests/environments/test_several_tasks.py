"""Several tasks as one environment: every scene is that of its own task alone, whoever is beside it."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.pocket_actions import random_actions
from wmpo_ray.config.loading import load_config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.starts import seeded_starts, start_seeds
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.several_tasks import SeveralTasks
from wmpo_ray.environments.task_of_start import tasks_of
from wmpo_ray.registry import check_simulator, make_environment, make_play

TWO = ['environment.task_names=["pocket","push"]']


def two_tasks(*settings: str):
    return load_config("demo", [*TWO, *settings])


def test_a_scene_is_what_it_is_in_the_environment_of_its_task_alone():
    config, seeds = two_tasks(), np.arange(12)
    mixed, tasks = make_environment(config.environment), tasks_of(config.environment)
    assert isinstance(mixed, SeveralTasks)
    mixed.restore(seeded_starts(seeds))
    names, rng = np.array(tasks.of_seeds(seeds)), np.random.default_rng(0)
    alone = {name: make_environment(section) for name, section in config.environment.variants.items()}
    for name, environment in alone.items():
        environment.restore(seeded_starts(seeds[names == name]))
    for actions in random_actions(12, 20, 3):
        script = mixed.expert_action(rng, 0.0)
        actions = np.where(np.arange(12)[:, None] % 3 > 0, script, actions)
        mixed.advance(actions)
        for name, environment in alone.items():
            rows = names == name
            environment.advance(actions[rows])
            assert np.array_equal(mixed.render()[rows], environment.render())
            assert np.array_equal(mixed.success[rows], environment.success)
            assert all(
                np.array_equal(mixed.failures[key][rows], environment.failures[key]) for key in environment.failures
            )
    assert set(names) == {"pocket", "push"} and mixed.success.any()


def test_each_task_has_its_share_of_any_consecutive_seeds():
    tasks = tasks_of(two_tasks("environment.task_weights=[3.0,1.0]").environment)
    for split in ("demos", "collect", "evaluate"):
        for count in (16, 60, 512):
            names = tasks.of_seeds(start_seeds(split, count, 7))
            assert abs(names.count("push") - count / 4) <= 2


def test_a_start_goes_to_the_task_that_it_names():
    tasks = tasks_of(two_tasks().environment)
    start = seeded_starts([5])[0]
    other = next(name for name in tasks.names if name != tasks.of_seed(5))
    assert tasks.of_start(start) == tasks.of_seed(5) and tasks.of_start(replace(start, task=other)) == other
    assert tasks.of_start(replace(start, instruction="push the block onto the pink mark")) == "push"
    with pytest.raises(ValueError, match="the environment has pocket, push"):
        tasks.of_start(replace(start, task="stack"))


def test_a_policy_reads_from_the_instruction_which_task_it_is():
    facts, tasks = environment_facts(two_tasks().environment), tasks_of(two_tasks().environment)
    assert len(facts.instructions) == 4
    assert tasks.of_instructions([*facts.instructions, "fly"]).tolist() == ["pocket", "pocket", "push", "push", ""]


def test_tasks_with_one_instruction_are_refused():
    config = load_config("demo", ['environment.task_names=["pocket","place"]'])
    with pytest.raises(ConfigError, match="pocket and place have the same instruction"):
        check_simulator(config)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (['environment.task_names=["push"]'], "at least two tasks"),
        (['environment.task_names=["push","push"]'], "each once"),
        (['environment.task_names=["push","fly"]'], 'environment.task = "fly": the tasks of pocket are'),
        ([*TWO, "environment.task_weights=[1.0]"], "each needs one weight"),
        ([*TWO, "environment.task=place"], "is none of environment.task_names"),
    ],
)
def test_mistakes_name_the_setting(settings, says):
    with pytest.raises(ConfigError, match=says):
        load_config("demo", settings)


def test_play_has_scenes_of_every_task():
    play = [part for part in make_play(two_tasks().environment, 20, 3)]
    tasks = tasks_of(two_tasks().environment)
    names = [name for part in play for name in tasks.of_instructions(part.instructions)]
    assert len(names) == 20 and 8 <= names.count("push") <= 12


def test_the_world_of_several_tasks_returns_to_a_state_of_any_of_them():
    import torch

    world = EnvironmentWorld(make_environment(two_tasks().environment), 4)
    state, _ = world.start(seeded_starts(range(6)))
    actions = torch.rand(6, 4, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    after, seen = world.step_chunk(state, actions, [0] * 6)
    world.step_chunk(after, -actions, [0] * 6)
    _, again = world.step_chunk(state, actions, [0] * 6)
    assert np.array_equal(seen.frames, again.frames)
