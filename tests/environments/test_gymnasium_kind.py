"""Any environment of gymnasium as scenes: scaling, ends, frames, and one line for what does not fit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.support.config_errors import error_of
from tests.support.implementations import environment_section, small_environment
from tests.support.reach_gym import HIGH, LOW, REACH
from wmpo_ray.config.dumping import config_to_json, config_to_toml
from wmpo_ray.config.loading import load_config, read_config_json, validate
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.kinds import ENVIRONMENTS
from wmpo_ray.registry import make_environment

TOWARDS = np.array([[1 / 3, 1.0]], np.float32)  # 1 to the right and 1 down


def scenes(num: int = 1, horizon: int = 20, **settings):
    made = make_environment(environment_section("gymnasium", horizon=horizon, **settings))
    made.restore(seeded_starts(range(num)))
    return made


def check(**settings) -> None:
    section = environment_section("gymnasium", **settings)
    ENVIRONMENTS.find("gymnasium").check(section)


def simulator(environment, i: int = 0):
    return environment._simulators[i].unwrapped


# -- episodes ----------------------------------------------------------------------------------------------------


def test_facts_come_from_the_settings_and_are_those_of_the_scenes():
    facts, environment = environment_facts(environment_section("gymnasium")), scenes(2)
    assert (
        facts[:3]
        == (environment.frame_shape, environment.action_dim, environment.instructions)
        == ((6, 6, 3), 2, ("reach the middle",))
    )
    assert environment.observe().instructions == ("reach the middle",) * 2


def test_actions_are_scaled_to_the_bounds_and_clipped():
    environment = scenes()
    for action in ([-1, -1], [1, 1], [0, 0], [-5, 5]):
        environment.advance(np.array([action], np.float32))
        environment.terminated[:] = False
    taken = np.array(simulator(environment).actions)
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, [LOW, HIGH, (LOW + HIGH) / 2, [LOW[0], HIGH[1]]])


def test_seeds_are_scenes_and_simulators_are_used_again():
    environment = scenes(3)
    first, made = environment.render(), list(environment._simulators)
    assert len(np.unique(first.reshape(3, -1), axis=0)) > 1
    environment.advance(np.repeat(TOWARDS, 3, 0))
    environment.restore(seeded_starts([2, 0]))
    assert np.array_equal(environment.render(), first[[2, 0]])
    assert environment._simulators == made and environment.terminated.tolist() == [False, False]


@pytest.mark.parametrize("terminates", [True, False])
def test_success_ends_the_episode_for_good(terminates):
    environment = scenes(make_arguments={"terminates": terminates})
    for _ in range(12):
        environment.advance(TOWARDS)
    assert environment.success.all() and environment.terminated.all() and not environment.failures["ended"].any()
    assert len(simulator(environment).actions) < 12, "a scene that has ended is not stepped"


def test_an_end_without_success_is_a_failure_or_a_success_where_ends_are_successes():
    for key, succeeds in (("is_success", False), ("", True)):
        environment = scenes(success_key=key)
        for _ in range(6):
            environment.advance(np.array([[-1.0, -1.0]], np.float32))
        assert environment.terminated.all()
        assert (environment.success[0], environment.failures["ended"][0]) == (succeeds, not succeeds)


def test_the_horizon_replaces_the_limit_of_the_registration():
    environment = scenes(horizon=8)
    for _ in range(8):
        environment.advance(np.array([[-1 / 3, 0.5]], np.float32))  # stays where it is
    assert not environment.terminated.any(), "the id was registered with 3 steps"


def test_an_action_is_repeated_until_the_end():
    environment = scenes(action_repeat=4)
    environment.advance(np.array([[-1 / 3, 0.5]], np.float32))
    assert len(simulator(environment).actions) == 4
    for _ in range(3):
        environment.advance(TOWARDS)
    taken = len(simulator(environment).actions)
    assert environment.success.all() and taken % 4, "the last one ended in the middle"


def test_frames_are_reduced_by_area():
    environment = scenes()
    whole = simulator(environment)._image().astype(float)
    expected = whole.reshape(6, 2, 6, 4, 3).mean((1, 3))
    assert np.abs(environment.render()[0] - expected).max() <= 0.5 and expected.max() > 0


def test_frames_come_from_the_observation_an_entry_of_it_or_render():
    plain = scenes().render()
    assert np.array_equal(scenes(image_key="camera", make_arguments={"flaw": "dict"}).render(), plain)
    assert np.array_equal(scenes(image_key="render").render(), plain[:, :, ::-1])


@pytest.mark.parametrize(("seed", "problem"), [(None, "has no seed"), (3, "has a saved_state")])
def test_a_saved_state_is_refused_and_never_taken_for_its_seed(seed, problem):
    start = replace(seeded_starts([0])[0], seed=seed, saved_state=b"x")
    with pytest.raises(
        ValueError, match=f'start 0 {problem}, and environments of kind "gymnasium" are rebuilt from seeds'
    ):
        scenes().restore([start])


# -- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "tests/Nowhere-v0"}, 'environment.id="tests/Nowhere-v0" cannot be made (Environment `Nowhere`'),
        ({"id": "no_such_module:Reach-v0"}, 'environment.id="no_such_module:Reach-v0" cannot be made ('),
        (
            {"import_name": "no_such_module"},
            'environment.import_name="no_such_module" needs the module no_such_module, which cannot be imported (No module',
        ),
        ({"make_arguments": {"flaw": "fails"}}, 'environment.id="tests/Reach-v0" cannot be made (the motor is cold); '),
        ({"make_arguments": {"colour": 1}}, 'environment.id="tests/Reach-v0" cannot be made ('),
        (
            {"make_arguments": {"flaw": "discrete"}},
            'environment.id="tests/Reach-v0": its actions are Discrete, and only a',
        ),
        ({"make_arguments": {"flaw": "unbounded"}}, 'environment.id="tests/Reach-v0": its actions are unbounded ('),
        (
            {"action_dim": 3},
            "environment.action_dim=3, and actions of tests/Reach-v0 have 2 numbers; set environment.act",
        ),
        (
            {"make_arguments": {"flaw": "secret"}},
            "environment.success_key=\"is_success\" is not in the info of tests/Reach-v0, which has ['solved']; set",
        ),
        (
            {"image_key": "camera"},
            'environment.image_key="camera" is not in the observation of tests/Reach-v0, which has no entries but uint8 [12',
        ),
        (
            {"image_key": "front", "make_arguments": {"flaw": "dict"}},
            "environment.image_key=\"front\" is not in the observation of tests/Reach-v0, which has ['camera', 'place']; s",
        ),
        (
            {"make_arguments": {"flaw": "dict"}},
            "environment.image_key=\"\" of tests/Reach-v0 is a dict of ['camera', 'place'], and a frame is [H, W, 3] uint",
        ),
        (
            {"image_key": "place", "make_arguments": {"flaw": "dict"}},
            'environment.image_key="place" of tests/Reach-v0 is float64 [2], and a frame is',
        ),
        (
            {"make_arguments": {"flaw": "float"}},
            'environment.image_key="" of tests/Reach-v0 is float32 [12, 24, 3], and',
        ),
        (
            {"image_key": "render", "make_arguments": {"flaw": "blind"}},
            'environment.image_key="render" of tests/Reach-v0 is NoneType, and a frame is',
        ),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_work(settings, message):
    with pytest.raises(ConfigError) as caught:
        check(**settings)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_what_fits_passes_and_gives_its_simulator_back():
    check()
    environment = small_environment("gymnasium")
    environment.check()
    assert environment._simulators == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("environment.id=''", 'environment.id = "": it must be the id of a registered environment; set environment.id'),
        ("environment.task=a", 'environment.task = "a": environments of kind "gymnasium" have no task; set it to ""'),
        (
            "environment.disruption=texture",
            'environment.disruption = "texture": environments of kind "gymnasium" have no disruption; set it to "none"',
        ),
        (
            "environment.make_arguments={a=[1]}",
            "environment.make_arguments.a = [1]: an argument must be a string, a number, true or false; change or remove it",
        ),
        ("environment.make_arguments=5", "environment.make_arguments = 5: it must be a"),
        ("environment.image_size=2", "environment.image_size = 2: it must be greater than or equal to 4"),
        ("environment.instruction=''", 'environment.instruction = "": '),
        (
            "environment.success_coverage=0.5",
            "environment.success_coverage = 0.5: this is a setting of environment.kind = ",
        ),
    ],
)
def test_wrong_settings_are_one_line(override, message):
    found = error_of("smoke", "environment.kind=gymnasium", "environment.id=tests/Reach-v0", override)
    assert found.startswith(message) and "\n" not in found


def test_make_arguments_survive_both_formats(tmp_path):
    arguments = {"obs_type": "pixels", "size": 96, "damping": 0.5, "quiet": True, "odd key": 'a "b"'}
    config = validate({"environment": {"kind": "gymnasium", **REACH, "make_arguments": arguments}})
    path = tmp_path / "config.json"
    path.write_text(config_to_json(config))
    assert read_config_json(path) == config
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config))
    assert load_config(str(path)) == config and config.environment.make_arguments == arguments
    other = load_config(str(path), ["environment.make_arguments.size=64"])
    assert other.environment.make_arguments == arguments | {"size": 64}


def test_settings_are_read_without_gymnasium_and_without_a_simulator():
    code = (
        "import sys; from wmpo_ray.config.loading import load_config; from wmpo_ray.environments.facts import "
        "environment_facts\nprint(environment_facts(load_config('pusht').environment))\n"
        "assert not {'gymnasium', 'gym_pusht', 'pymunk', 'pygame', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
