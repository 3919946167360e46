"""robosuite with its real simulator: seeds, pictures, exact states, failures, disruptions, and an episode."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import numpy as np
import pytest

from tests.support.implementations import environment_section, random_actions, require_simulator
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.starts import seeded_starts, start_seeds
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.robosuite.evaluation_starts import TASKS, TOLERANCE, draw_starts, recorded_starts
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import execute_actions, rollout_expert

UP, DOWN, OPEN, CLOSE = 1.0, -1.0, -1.0, 1.0


@pytest.fixture(autouse=True)
def simulator():
    require_simulator("robosuite")


def environment_of(**settings):
    return make_environment(environment_section("robosuite", **settings))


@functools.cache
def kept_environment(**settings):
    """To make one takes most of the time of a test, and to place scenes again leaves nothing of the ones before."""
    return environment_of(**settings)


def scenes(num: int = 1, **settings):
    environment = kept_environment(**settings)
    environment.restore(seeded_starts(range(num)))
    return environment


def action(z: float, grip: float) -> np.ndarray:
    return np.array([[0, 0, z, 0, 0, 0, grip]], np.float32)


def drawn(**settings) -> np.ndarray:
    return scenes(image_size=64, **settings).render()[0].astype(int)


# -- scenes ------------------------------------------------------------------------------------------------------


def test_facts_are_those_of_the_scenes():
    environment = scenes(2, image_size=48)
    facts = environment_facts(environment.config)
    assert facts == (environment.frame_shape, environment.action_dim, environment.instructions)
    frames = environment.render()
    assert frames.shape == (2, 48, 48, 3) and not np.array_equal(*frames)


def test_frames_are_upright_and_show_the_cube():
    frame = drawn(camera="frontview")
    red = (frame[..., 0] - frame[..., 1] > 40) & (frame[..., 0] - frame[..., 2] > 40)
    rows = np.flatnonzero(red.any(1))
    assert red.sum() > 3 and rows.min() > 32, "the cube lies in the lower half of the front view"
    assert drawn(camera="birdview").std() > 5


@pytest.mark.parametrize("task", TASKS)
def test_evaluations_start_where_they_were_recorded(task):
    recorded = recorded_starts(task)
    assert set(recorded.versions) == {"robosuite", "mujoco", "numpy"} and len(np.unique(recorded.qpos, axis=0)) == 128
    simulator = kept_environment(task=task).simulator()
    seeds, drawn = draw_starts(simulator)
    assert np.array_equal(seeds, recorded.seeds) and np.array_equal(seeds, start_seeds("evaluate", 128, run_seed=5))
    np.testing.assert_allclose(drawn, recorded.qpos, rtol=0, atol=TOLERANCE)


def test_starts_that_are_drawn_otherwise_end_a_run_before_it_begins(monkeypatch):
    environment = environment_of()
    place = environment.simulator().place
    monkeypatch.setattr(environment.simulator(), "place", lambda seed: place(seed + 1))
    with pytest.raises(
        ConfigError, match="draws other start states than were recorded with mujoco 2.3.2, numpy 1.26.4"
    ):
        environment.check()


@pytest.mark.parametrize("task", ["Lift", "NutAssemblySingle", "Door"])
def test_a_seed_is_a_scene_in_every_simulator_and_after_any_other(task):
    one = scenes(3, task=task)
    placed = one.save()
    assert len(set(placed)) == 3
    for other in (environment_of(task=task), one):
        other.restore(seeded_starts([7, 2, 0]))
        assert other.save()[1:] == [placed[2], placed[0]]


def test_global_random_numbers_are_left_alone():
    np.random.seed(3)
    random.seed(3)
    expected = np.random.rand(), random.random()
    np.random.seed(3)
    random.seed(3)
    scenes(2)
    assert (np.random.rand(), random.random()) == expected


def test_steps_are_those_of_robosuite():
    """Torques are computed at the same moments; only the solver of contacts starts from another guess."""
    environment = scenes()
    simulator = environment.simulator()
    actions = random_actions(1, 12, dim=7).numpy()[0].astype(np.float64)
    for each in actions:
        environment.advance(each[None])
    ours = environment._states[0]
    simulator.place(0)
    for each in actions:
        simulator.env.step(each)
    np.testing.assert_allclose(ours["qpos"], simulator.data.qpos, atol=1e-4)
    np.testing.assert_allclose(ours["time"][0], simulator.data.time)


@pytest.mark.parametrize("task", ["Lift", "NutAssemblySquare"])
def test_a_saved_scene_goes_on_to_the_last_bit_in_another_simulator(task):
    """Also in the middle of a grasp, where a simulator remembers more than positions."""
    environment = scenes(2, task=task)
    rng = np.random.default_rng(0)
    for _ in range(30):
        environment.advance(environment.expert_action(rng, 0.1))
    saved = environment.save()
    actions = random_actions(2, 10, dim=7).numpy()
    starts = [replace(start, seed=None, saved_state=state) for start, state in zip(seeded_starts([0, 0]), saved)]
    ends = []
    for made in (environment, environment_of(task=task)):
        made.restore(starts)
        for step in range(10):
            made.advance(actions[:, step])
        ends.append((made.save(), made.render()))
    assert ends[0][0] == ends[1][0] and np.array_equal(ends[0][1], ends[1][1])
    environment.restore(starts)
    assert environment.save() == saved, "nothing is lost or changed on the way"


def test_a_state_of_another_task_or_of_another_size_is_refused():
    (saved,) = scenes(task="Stack").save()
    start = replace(seeded_starts([0])[0], saved_state=saved)
    with pytest.raises(ValueError, match=r"start 0: its saved_state has \d+ bytes, a scene has \d+"):
        kept_environment().restore([start])
    damaged = replace(start, saved_state=b"x" * 16 + saved[16:])
    with pytest.raises(ValueError, match="of another task, or of another version.* Stack, robosuite 1.4.1, mujoco"):
        kept_environment(task="Stack").restore([damaged])


def test_as_a_world_it_rebuilds_a_scene_amid_an_episode():
    world = EnvironmentWorld(kept_environment(), 4)
    state, _ = world.start(seeded_starts(range(2)))
    rng = np.random.default_rng(0)
    for _ in range(3):
        state, _ = world.step_expert(state, rng, 0.0)
    actions = random_actions(2, 4, dim=7)
    _, first = world.step_chunk(state, actions, [0] * 2)
    world.start(seeded_starts([7]))
    _, again = world.step_chunk(state, actions, [0] * 2)
    assert np.array_equal(first.frames, again.frames)


def test_actions_that_are_no_numbers_are_refused():
    environment = scenes()
    with pytest.raises(ValueError, match="the action of scene 0 is .*must be finite"):
        environment.advance(np.full((1, 7), np.nan))


# -- episodes ----------------------------------------------------------------------------------------------------


def test_an_expert_lifts_the_cube_from_held_out_starts_and_its_actions_do_it_again():
    seeds = start_seeds("evaluate", 3, 0)
    episodes = rollout_expert(kept_environment(), seeds, 0.0, (0, "expert"))
    assert episodes.success.all() and (episodes.lengths < 64).all()
    assert not any(flags.any() for flags in episodes.failures.values())
    assert execute_actions(kept_environment(), seeds, episodes.actions).all()


def test_fingers_that_close_on_nothing_miss():
    environment = scenes()
    for _ in range(15):
        environment.advance(action(0, OPEN))
    assert not environment.failures["miss"].any()
    for _ in range(15):
        environment.advance(action(0, CLOSE))
    assert environment.failures["miss"].all() and not environment.failures["drop"].any()


def test_what_is_let_go_of_in_the_air_is_dropped():
    environment = scenes(task="Stack")
    rng = np.random.default_rng(0)
    watch, memory = environment._watch, environment._memories[0]
    for _ in range(120):
        if (memory["held_height"] > memory["start_height"] + 0.05).any():
            break
        environment.advance(environment.expert_action(rng))
    else:
        pytest.fail("the expert has not lifted a cube")
    assert watch.names == ("miss", "drop") and not environment.failures["drop"].any()
    for _ in range(20):
        environment.advance(action(0, OPEN))
    assert environment.failures["drop"].all() and not environment.success.any()


# -- disruptions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["Lift", "Stack", "NutAssemblySquare"])
def test_disruptions_change_what_they_say(task):
    plain = scenes(3, task=task, horizon=100)
    states = {name: np.stack([state[name] for state in plain._states]) for name in ("qpos", "body_pos")}
    for disruption in ("background", "texture"):
        other = scenes(3, task=task, disruption=disruption)
        assert other.save() == plain.save(), "the scene is the same and looks different"
        differ = np.abs(other.render().astype(int) - plain.render()).max(-1) > 10
        assert 0.002 < differ.mean() < 0.9
    displaced = scenes(3, task=task, disruption="position")
    moved = {name: np.stack([state[name] for state in displaced._states]) - values for name, values in states.items()}
    changed = moved["body_pos" if task == "NutAssemblySquare" else "qpos"]
    assert (np.abs(changed).reshape(3, -1).max(1) > 0.02).all()
    assert displaced.save() == scenes(3, task=task, disruption="position").save()


def test_displaced_cubes_lie_beyond_where_the_task_puts_them():
    for task, inner, outer in (("Lift", 0.05, 0.10), ("Stack", 0.09, 0.14)):
        environment = scenes(8, task=task, disruption="position")
        for state in environment._states:
            spots = [state["qpos"][first : first + 2] for first in range(9, len(state["qpos"]), 7)]
            assert all(inner <= np.abs(spot).max() <= outer for spot in spots)


# -- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"task": "Tea"},
            r'environment.task="Tea": it is unknown; the tasks of robosuite 1.4.1 for one arm are Door, Lift',
        ),
        ({"task": "TwoArmLift"}, r'environment.task="TwoArmLift": it is a task for two arms; '),
        ({"task": "Wipe"}, r'environment.task="Wipe": its actions have 6 numbers'),
        (
            {"camera": "topview"},
            r'environment.camera="topview": the cameras of this task are frontview, birdview, agentview',
        ),
        (
            {"task": "Door", "disruption": "position"},
            r'environment.disruption="position": it is defined for Lift, Stack',
        ),
    ],
)
def test_what_robosuite_does_not_have_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        environment_of(**settings).check()


def test_a_check_takes_a_step_and_leaves_nothing_behind():
    environment = environment_of()
    environment.check()
    environment.restore(seeded_starts([0]))
    assert environment.render().std() > 5
