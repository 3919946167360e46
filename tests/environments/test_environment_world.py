"""An environment as a world is the environment, bit for bit, and rebuilds it only where it must."""

import numpy as np
import pytest
import torch

from tests.support.small_world import random_chunk, scene_starts
from wmpo_ray.core.observations import StartState
from wmpo_ray.environments.environment_world import EnvironmentWorld
from wmpo_ray.environments.pocket.env import PocketEnvironment

NUM, HORIZON = 6, 24


class CountingEnvironment(PocketEnvironment):
    num_steps_made = num_renderings = 0

    def advance(self, actions):
        self.num_steps_made += 1
        super().advance(actions)

    def render(self):
        self.num_renderings += 1
        return super().render()


@pytest.fixture
def world() -> EnvironmentWorld:
    return EnvironmentWorld(CountingEnvironment(HORIZON), chunk_length=4)


@pytest.fixture(scope="module")
def episodes():
    """Expert actions [N, T, 3] that end with success in half of the scenes, and the frames [N, T+1, H, W, 3]."""
    env = PocketEnvironment(HORIZON)
    frames, actions, rng = [env.reset(range(NUM))], [], np.random.default_rng(0)
    for _ in range(HORIZON):
        action = env.expert_action(rng)
        action[::2, 2] = -1
        actions.append(action)
        frames.append(env.step(action)[0])
    assert env.success.tolist() == [False, True] * (NUM // 2)
    return np.stack(actions, 1), np.stack(frames, 1)


def step_through(world, actions, mode="all"):
    (state, _), made = world.start(scene_starts(NUM)), []
    for t in range(0, HORIZON, 4):
        state, transition = world.step_chunk(state, torch.from_numpy(actions[:, t : t + 4]), [0] * NUM, mode)
        made.append(transition)
    return made


def test_equals_the_environment_bit_for_bit_and_freezes_after_success(world, episodes):
    actions, frames = episodes
    made = step_through(world, actions)
    shown = np.concatenate([transition.frames for transition in made], 1)
    assert np.array_equal(shown, frames[:, 1:])
    # Whatever is done after the success, the scene has ended.
    assert np.array_equal(shown[1, -4:], shown[1, -1:].repeat(4, 0))
    assert made[-1].success.tolist() == made[-1].done.tolist() == [False, True] * (NUM // 2)
    lengths = sum(transition.num_steps for transition in made)
    still = (frames == frames[:, -1:]).all((2, 3, 4)).argmax(1)
    assert (lengths[1::2] == still[1::2]).all() and (lengths[::2] == HORIZON).all()
    assert made[-1].failures.keys() == {"miss", "jam", "drop", "wrong_pocket"}


@pytest.mark.parametrize(("mode", "renderings"), [("all", 1 + HORIZON), ("last", 1 + HORIZON // 4), ("none", 1)])
def test_stepping_on_costs_one_step_each_and_renders_only_what_is_asked_for(world, episodes, mode, renderings):
    step_through(world, episodes[0], mode)
    assert world.environment.num_steps_made == HORIZON
    assert world.environment.num_renderings == renderings


def test_going_back_replays_the_history_without_rendering(world):
    start, _ = world.start(scene_starts(2))
    after, first = world.step_chunk(start, random_chunk(2), [0, 0])
    world.step_chunk(after, random_chunk(2, 1), [0, 0])
    steps, renderings = world.environment.num_steps_made, world.environment.num_renderings
    world.step_chunk(after, random_chunk(2, 2), [0, 0], "last")
    assert world.environment.num_steps_made - steps == 8, "four to be back, four onward"
    assert world.environment.num_renderings - renderings == 1
    assert np.array_equal(world.step_chunk(start, random_chunk(2), [1, 1])[1].frames, first.frames)


class Forgetful(CountingEnvironment):
    """The same environment, which cannot save its scenes."""

    abilities = CountingEnvironment.abilities - {"restore"}

    def save(self):
        raise AssertionError("it has no such ability")


def take_turns(world, actions) -> list:
    """Two batches of scenes stepped in turns, and once from the middle again: every transition."""
    one, two = world.start(scene_starts(NUM))[0], world.start(scene_starts(NUM - 2))[0]
    states, made = [one], []
    for t in range(0, HORIZON, 4):
        chunk = torch.from_numpy(actions[:, t : t + 4])
        one, first = world.step_chunk(one, chunk, [0] * NUM)
        two, second = world.step_chunk(two, chunk[2:].flip(1), [0] * (NUM - 2))
        states.append(one)
        made += [first, second]
    for state in (states[3], states[1], states[3], states[0]):
        made.append(world.step_chunk(state, torch.from_numpy(actions[:, 12:16]), [0] * NUM)[1])
    return made


def test_scenes_that_can_be_saved_are_restored_instead_of_replayed_with_the_same_bits(episodes):
    saving, replaying = (EnvironmentWorld(kind(HORIZON), 4) for kind in (CountingEnvironment, Forgetful))
    made = [take_turns(world, episodes[0]) for world in (saving, replaying)]
    for one, other in zip(*made, strict=True):
        assert np.array_equal(one.frames, other.frames) and np.array_equal(one.num_steps, other.num_steps)
        assert np.array_equal(one.success, other.success) and np.array_equal(one.done, other.done)
        assert all(np.array_equal(one.failures[name], other.failures[name]) for name in one.failures)
    assert made[0][-1].failures["jam"].dtype == bool
    assert saving.environment.num_steps_made == 2 * HORIZON + 4 * 4, "no step is made twice"
    assert replaying.environment.num_steps_made > 2 * saving.environment.num_steps_made


def test_saved_scenes_go_with_their_states(world):
    state = world.start(scene_starts(2))[0]
    for index in range(3):
        after, _ = world.step_chunk(state, random_chunk(2, index), [0, 0])
        world.start(scene_starts(1))
        assert len(world._saved) == 1
        del after
    assert len(world._saved) == 0


def test_after_an_error_the_scenes_are_rebuilt(world, monkeypatch):
    state, _ = world.start(scene_starts(2))
    expected = world.step_chunk(state, random_chunk(2), [0, 0])[1]
    state, _ = world.start(scene_starts(2))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="simulator"):
        patch.setattr(world.environment, "observe", _fail)
        world.step_chunk(state, random_chunk(2), [0, 0])
    assert np.array_equal(world.step_chunk(state, random_chunk(2), [0, 0])[1].frames, expected.frames)


def _fail():
    raise RuntimeError("the simulator broke down")


def test_a_start_without_a_scene_names_the_setting(world):
    start = scene_starts(1)[0]
    with pytest.raises(ValueError, match=r"world_model\.kind"):
        world.start([start, StartState(start.frames, start.instruction)])


def test_a_chunk_of_another_length_is_refused(world):
    state, _ = world.start(scene_starts(1))
    with pytest.raises(ValueError, match=r"rollout\.chunk_length"):
        world.step_chunk(state, random_chunk(1)[:, :3], [0])
