"""The perfect world is the environment, bit for bit."""

import numpy as np
import pytest
import torch

from tests.support.small_world import random_chunk, scene_starts
from wmpo_ray.core.interfaces import WorldModel
from wmpo_ray.core.types import StartState
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.world_models.simulator import SimulatorWorldModel

NUM, HORIZON = 6, 24


@pytest.fixture(scope="module")
def world() -> SimulatorWorldModel:
    return SimulatorWorldModel(lambda: PocketEnvironment(HORIZON), chunk_length=4)


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


def imagine(world, starts, actions):
    state, frames = world.start(starts), []
    for t in range(0, HORIZON, 4):
        state, chunk = world.imagine_chunk(state, actions[:, t : t + 4], [0] * len(starts))
        frames.append(chunk)
    return torch.cat(frames, 1).numpy()


def test_implements_the_protocol(world):
    assert isinstance(world, WorldModel) and world.kind == "simulator"


def test_equals_the_environment_bit_for_bit_and_freezes_after_success(world, episodes):
    actions, frames = episodes
    imagined = imagine(world, scene_starts(NUM), torch.from_numpy(actions))
    assert imagined.dtype == np.uint8
    assert np.array_equal(imagined, frames[:, 1:])
    # Whatever is done after the success, the scene has ended.
    assert np.array_equal(imagined[1, -4:], imagined[1, -1:].repeat(4, 0))


def test_the_state_given_can_be_used_again(world):
    start = world.start(scene_starts(2))
    state, first = world.imagine_chunk(start, random_chunk(2, 0), [0, 0])
    _, second = world.imagine_chunk(state, random_chunk(2, 1), [0, 0])
    _, other = world.imagine_chunk(start, random_chunk(2, 2), [0, 0])
    assert torch.equal(world.imagine_chunk(start, random_chunk(2, 0), [1, 1])[1], first)
    assert torch.equal(world.imagine_chunk(state, random_chunk(2, 1), [1, 1])[1], second)
    assert not torch.equal(other, first)


def test_actions_may_be_overwritten_afterwards(world):
    actions = random_chunk(2)
    state, _ = world.imagine_chunk(world.start(scene_starts(2)), actions, [0, 0])
    expected = world.imagine_chunk(state, random_chunk(2, 1), [0, 0])[1]
    actions.zero_()
    assert torch.equal(world.imagine_chunk(state, random_chunk(2, 1), [0, 0])[1], expected)


def test_selected_rows_go_on_alone(world):
    state, _ = world.imagine_chunk(world.start(scene_starts(4)), random_chunk(4), [0] * 4)
    rows = torch.tensor([2, 0])
    whole = world.imagine_chunk(state, random_chunk(4, 1), [0] * 4)[1]
    assert torch.equal(world.imagine_chunk(state.select(rows), random_chunk(4, 1)[rows], [0] * 2)[1], whole[rows])


def test_a_start_without_a_scene_names_the_setting(world):
    start = scene_starts(1)[0]
    with pytest.raises(ValueError, match="world_model.kind"):
        world.start([start, StartState(start.frames, start.instruction)])


def test_a_chunk_of_another_length_is_refused(world):
    with pytest.raises(ValueError, match="rollout.chunk_length"):
        world.imagine_chunk(world.start(scene_starts(1)), random_chunk(1)[:, :3], [0])
