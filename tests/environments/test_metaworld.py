"""Meta-World with its real simulator: scenes, exact restores, pictures, failures, and experts that succeed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.support.config_errors import error_of
from tests.support.implementations import environment_section, random_actions, require_simulator
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.starts import seeded_starts, start_seeds
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.metaworld.metaworld_pictures import picture_size
from wmpo_ray.environments.metaworld.metaworld_tasks import FAILURES, TASKS
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import execute_actions, rollout_expert


@pytest.fixture
def simulator():
    require_simulator("metaworld")


def scenes(num: int = 1, **settings):
    environment = make_environment(environment_section("metaworld", **settings))
    environment.restore(seeded_starts(range(num)))
    return environment


def act(environment, actions: np.ndarray) -> None:
    for step in range(actions.shape[1]):
        environment.advance(actions[:, step])


def states(environment) -> list[np.ndarray]:
    return [environment._env(i).scene.physics for i in range(len(environment.terminated))]


# -- without the simulator ---------------------------------------------------------------------------------------


def test_every_task_has_a_sentence_of_its_own():
    instructions = [task.instruction for task in TASKS.values()]
    assert len(set(instructions)) == len(TASKS) == 50 and all(" " in text for text in instructions)
    assert {task.manner for task in TASKS.values()} == FAILURES.keys()


def test_facts_come_from_the_settings():
    section = environment_section("metaworld", task="push-v3", image_size=48)
    assert environment_facts(section)[:3] == ((48, 48, 3), 4, ("push the block to the goal",))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("environment.task=reach", 'environment.task="reach": known tasks of metaworld are assembly-v3, basketball-v3'),
        (
            "environment.disruption=position",
            'environment.disruption = "position": Meta-World\'s tasks are solvable only',
        ),
        ("environment.camera=front", "environment.camera"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(override, message):
    error = error_of("metaworld", override)
    assert error.startswith(message) and "\n" not in error


def test_settings_are_read_without_the_simulator():
    code = (
        "import sys; from wmpo_ray.config.loading import load_config; from wmpo_ray.environments.facts import "
        "environment_facts\nprint(environment_facts(load_config('metaworld').environment))\n"
        "assert not {'gymnasium', 'metaworld', 'mujoco', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_package_it_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    environment = make_environment(environment_section("metaworld"))
    for make in (environment.check, lambda: environment.restore(seeded_starts([0]))):
        with pytest.raises(ConfigError) as caught:
            make()
        message = str(caught.value)
        assert message.startswith('environment.kind="metaworld" needs the module metaworld, which cannot be imported (')
        assert message.endswith("pip install 'wmpo-ray[metaworld]' or change environment.kind") and "\n" not in message


@pytest.mark.parametrize("size", [4, 24, 64, 100, 256])
def test_frames_are_whole_parts_of_pictures(size):
    assert picture_size(size) % size == 0 and picture_size(size) >= max(128, 2 * size)


# -- scenes ------------------------------------------------------------------------------------------------------


def test_the_tasks_are_those_of_the_simulator(simulator):
    env_dict = pytest.importorskip("metaworld.env_dict", exc_type=ImportError)
    assert env_dict.ALL_V3_ENVIRONMENTS.keys() == TASKS.keys()


def test_facts_are_those_of_the_scenes(simulator):
    facts, environment = environment_facts(environment_section("metaworld", image_size=48)), scenes(image_size=48)
    assert facts[:3] == (environment.frame_shape, environment.action_dim, environment.instructions)
    assert environment.render().shape == (1, 48, 48, 3)


@pytest.mark.parametrize("task", ["drawer-open-v3", "bin-picking-v3", "sweep-into-v3"])
def test_a_seed_is_a_scene_bit_for_bit_whatever_was_there_before(simulator, task):
    fresh, used = scenes(3, task=task), scenes(2, task=task)
    act(used, random_actions(2, 5, dim=4).numpy())
    used.restore(seeded_starts([2, 0, 1]))
    assert used.save() == [fresh.save()[seed] for seed in (2, 0, 1)]
    assert np.array_equal(used.render(), fresh.render()[[2, 0, 1]])
    assert len({fresh._env(i).scene.seen.tobytes() for i in range(3)}) == 3


def test_scenes_that_share_a_simulator_go_as_they_do_in_one_of_meta_worlds_own(simulator):
    import gymnasium
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    environment = scenes(2, task="push-v3", action_repeat=1)
    actions = random_actions(2, 40, dim=4).numpy()
    for row in (0, 1):
        alone = ALL_V3_ENVIRONMENTS["push-v3"]()
        alone._partially_observable, alone.seeded_rand_vec, alone._set_task_called = False, True, True
        del alone.sawyer_observation_space  # made before it was known what can be observed
        alone.np_random, _ = gymnasium.utils.seeding.np_random(row)
        alone._freeze_rand_vec = False
        alone.reset_model()
        alone._freeze_rand_vec = True
        alone.reset()
        for step in range(40):
            seen, *_ = alone.step(actions[row, step])
            if not row:
                environment.advance(actions[:, step])
        np.testing.assert_allclose(environment._env(row).scene.seen, seen, atol=1e-6)


def test_training_and_held_out_scenes_differ(simulator):
    environment = scenes()
    environment.restore(seeded_starts([*start_seeds("demos", 4, 0), *start_seeds("evaluate", 4, 0)]))
    assert len({environment._env(i).scene.object.tobytes() for i in range(8)}) == 8


@pytest.mark.parametrize("task", ["drawer-open-v3", "bin-picking-v3", "basketball-v3", "door-unlock-v3"])
def test_a_saved_scene_goes_on_to_the_last_bit_in_another_simulator(simulator, task):
    environment, actions = scenes(2, task=task), random_actions(2, 20, dim=4).numpy()
    rng = np.random.default_rng(0)
    for _ in range(8):
        environment.advance(environment.expert_action(rng, 0.3))
    saved = environment.save()
    act(environment, actions)
    other = make_environment(environment_section("metaworld", task=task))
    other.restore([replace(start, seed=None, saved_state=saved[i]) for i, start in enumerate(seeded_starts([0, 0]))])
    assert other.save() == saved
    act(other, actions)
    assert other.save() == environment.save()
    assert np.array_equal(other.render(), environment.render())


def test_a_state_of_another_task_or_version_or_a_hostile_one_is_refused(simulator):
    environment = scenes()
    (saved,) = environment.save()
    content = json.loads(saved)
    hostile = [
        {**content, "task": "push-v3"},
        {**content, "mujoco": "2.3.2"},
        {**content, "scene": {**content["scene"], "physics": content["scene"]["physics"][1:]}},
        {**content, "scene": {**content["scene"], "physics": [float("nan")] * len(content["scene"]["physics"])}},
        {**content, "scene": {**content["scene"], "fields": {**content["scene"]["fields"], "step": 1}}},
        {**content, "scene": {**content["scene"], "fields": {"init_tcp": {"dtype": "O", "shape": [], "values": []}}}},
        [],
    ]
    for state in hostile:
        start = replace(seeded_starts([0])[0], seed=None, saved_state=json.dumps(state).encode())
        with pytest.raises(ValueError, match="start 0: its saved_state has .* cannot be restored"):
            environment.restore([start])


# -- experts and failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["reach-v3", "drawer-open-v3", "button-press-topdown-v3", "pick-place-v3"])
def test_the_expert_succeeds_on_held_out_scenes_and_its_actions_do_it_again(simulator, task):
    section = environment_section("metaworld", task=task, image_size=8)
    seeds = start_seeds("evaluate", 3, 0)
    episodes = rollout_expert(make_environment(section), seeds, 0.1, (0, "expert"))
    assert episodes.success.all() and not any(flags.any() for flags in episodes.failures.values())
    assert execute_actions(make_environment(section), seeds, episodes.actions).all()


def test_failures_are_what_happened(simulator):
    stay = np.zeros((1, 4), np.float32)
    for task, failure in (("reach-v3", "never_near"), ("push-v3", "never_moved")):
        environment = scenes(task=task)
        act(environment, np.repeat(stay[:, None], 3, 1))
        assert environment.failures[failure].all() and environment.failures.keys() == {failure}
    environment, rng = scenes(task="pick-place-v3", action_repeat=2), np.random.default_rng(0)
    while not environment._lifted.any():
        environment.advance(environment.expert_action(rng))
    assert not environment.failures["never_moved"].any() and not environment.failures["dropped"].any()
    for _ in range(30):
        environment.advance(np.array([[0, 0, 0, -1]], np.float32))
    assert environment.failures["dropped"].all() and not environment.success.any()


# -- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("camera", ["corner", "corner2", "corner4", "behindGripper"])
def test_pictures_are_upright(simulator, camera):
    environment = scenes(camera=camera, image_size=128)
    frame = environment.render()[0].astype(int)
    red, green, blue = frame[..., 0], frame[..., 1], frame[..., 2]
    arm = (red > 80) & (green < 50) & (blue < 50)
    wood = (red > green + 15) & (green > blue) & (green > 50)
    assert arm.sum() > 200 and wood.sum() > 200
    assert np.nonzero(arm)[0].mean() < np.nonzero(wood)[0].mean(), "the arm is above the table"


def test_the_first_picture_shows_the_objects_where_they_are(simulator):
    environment = scenes(3, task="drawer-open-v3", camera="topview", image_size=64)
    first = environment.render()[:, :18].astype(int)  # without the arm, which settles
    environment.advance(np.zeros((3, 4), np.float32))
    after = environment.render()[:, :18].astype(int)
    assert np.abs(first - after).mean() < 0.3 * np.abs(first[0] - first[1]).mean()


def test_disruptions_change_the_picture_and_nothing_else(simulator):
    plain, actions = scenes(), random_actions(1, 4, dim=4).numpy()
    act(plain, actions)
    for disruption in ("background", "texture"):
        other = scenes(disruption=disruption)
        act(other, actions)
        assert np.array_equal(states(other)[0], states(plain)[0])
        assert np.abs(other.render().astype(int) - plain.render()).max() > 40
