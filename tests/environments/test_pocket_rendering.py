"""Pixels carry the state, to a fraction of a pixel, and disruptions change only what they should."""

import numpy as np
import pytest

from tests.support.pocket_actions import random_actions
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.environments.pocket.geometry import BLOCK_HALF, WALL_X
from wmpo_ray.environments.pocket.rendering import detect_events, locate_block, upscale


def play(disruption: str = "none", num_scenes: int = 200, num_steps: int = 40):
    """Random actions, half of them aimed at the block: frames [T, N, H, W, 3], blocks [T, N, 2], held [T, N]."""
    env = PocketEnvironment(disruption=disruption, ends_on_success=False)
    env.reset(np.arange(num_scenes), render=False)
    rng, frames, blocks, held = np.random.default_rng(0), [], [], []
    for action in random_actions(num_scenes, num_steps, 6):
        at_block = (rng.random(num_scenes) < 0.5) & ~env.held
        expert = env.expert_action(rng, 0.5)
        frames.append(env.step(np.where(at_block[:, None], expert, action))[0])
        blocks.append(env.block.copy())
        held.append(env.held.copy())
    return np.stack(frames), np.stack(blocks), np.stack(held)


def test_a_tenth_of_a_pixel_shows():
    env = PocketEnvironment()
    env.reset(np.zeros(21, int))
    env.gripper[:] = 2.0
    env.block[:] = np.stack([np.linspace(6.0, 8.0, 21), np.linspace(9.0, 10.0, 21)], 1)
    frames = env.render()
    # Painting is linear in coverage: the centre of what the block adds to the backdrop is its centre.
    added = (frames - env.backdrop())[..., 5:, :, 0]
    pixel = np.arange(16) + 0.5
    x = (added * pixel).sum((1, 2)) / added.sum((1, 2))
    y = (added * pixel[5:, None]).sum((1, 2)) / added.sum((1, 2))
    assert np.abs(np.stack([x, y], 1) - env.block).max() < 0.02  # rounding to uint8
    centre, held = locate_block(frames)
    assert np.abs(centre - env.block).max() < 0.2 and not held.any()


def test_block_and_grip_can_be_read_from_pixels():
    frames, blocks, held = play()
    centre, seen_held = locate_block(frames)
    assert 0.2 < held.mean() < 0.95
    assert (np.abs(centre - blocks).max(-1) < 0.75).mean() > 0.99
    assert (seen_held == held).mean() > 0.99


def test_events_are_those_of_the_state():
    frames, blocks, held = play(num_scenes=300, num_steps=24)
    events = detect_events(frames.swapaxes(0, 1))
    grasp = (held[1:] & held[:-1]).any(0)
    assert 0 < grasp.mean() < 1
    assert (events["grasp"] == grasp).mean() > 0.97
    # Depth is read to 0.35 pixels: only clear cases count.
    deepest = np.minimum(blocks[1:, :, 0], blocks[:-1, :, 0]).max(0)
    assert events["placement"][deepest > 12.6].all() and (deepest > 12.6).any()
    assert not events["placement"][blocks[..., 0].max(0) < 11.5].any()


@pytest.mark.parametrize("disruption", ["background", "texture"])
def test_a_look_leaves_scene_and_dynamics_alone(disruption):
    plain, changed = play(num_scenes=50), play(disruption, num_scenes=50)
    assert np.array_equal(plain[1], changed[1]) and np.array_equal(plain[2], changed[2])
    assert not np.array_equal(plain[0], changed[0])


def test_background_changes_nothing_on_wall_block_or_gripper():
    seeds = np.arange(50)
    plain, other = PocketEnvironment(), PocketEnvironment(disruption="background")
    frames, changed = plain.reset(seeds), other.reset(seeds)
    pixel = np.arange(16)
    inside_x = np.abs(pixel + 0.5 - plain.block[:, :1]) < BLOCK_HALF - 0.5
    inside_y = np.abs(pixel + 0.5 - plain.block[:, 1:]) < BLOCK_HALF - 0.5
    on_block = inside_y[:, :, None] & inside_x[:, None, :]
    on_wall = np.broadcast_to(pixel >= WALL_X + 0.5, on_block.shape)
    same = (frames == changed).all(-1)
    assert same[on_block].all() and same[on_wall].all()
    empty = (frames == [40, 44, 52]).all(-1)
    assert not same[empty].any() and empty.mean() > 0.3


def test_the_background_keeps_its_mean():
    """A policy that sums patches of pixels would take a shift of all of them for an object."""
    plain, other = PocketEnvironment(), PocketEnvironment(disruption="background")
    plain.reset([0], render=False), other.reset([0], render=False)
    columns = slice(0, 8)  # left of the wall, whole squares
    assert np.allclose(plain.backdrop()[0, :, columns].mean((0, 1)), other.backdrop()[0, :, columns].mean((0, 1)))


def test_texture_changes_nothing_off_the_block():
    seeds = np.arange(50)
    plain, other = PocketEnvironment(), PocketEnvironment(disruption="texture")
    differs = (plain.reset(seeds) != other.reset(seeds)).any(-1)
    pixel = np.arange(16)
    near_x = np.abs(pixel + 0.5 - plain.block[:, :1]) < BLOCK_HALF + 0.5
    near_y = np.abs(pixel + 0.5 - plain.block[:, 1:]) < BLOCK_HALF + 0.5
    on_block = near_y[:, :, None] & near_x[:, None, :]
    assert not differs[~on_block].any()
    assert differs.any((1, 2)).all()


def test_position_draws_starts_that_the_plain_task_never_uses():
    seeds = np.arange(200)
    plain, other = PocketEnvironment(), PocketEnvironment(disruption="position")
    plain.reset(seeds, render=False), other.reset(seeds, render=False)
    assert plain.block[:, 0].max() <= 7.5 <= other.block[:, 0].min()
    # The same scene looks and moves the same in both.
    for name in ("gripper", "block", "pocket_y", "pocket_colour"):
        setattr(other, name, getattr(plain, name).copy())
    for action in random_actions(200, 12, 7):
        assert np.array_equal(plain.step(action)[0][:, :, :10], other.step(action)[0][:, :, :10])
    assert np.array_equal(plain.block, other.block)


@pytest.mark.parametrize("disruption", ["position", "background", "texture"])
def test_disrupted_tasks_can_be_solved(disruption):
    env = PocketEnvironment(disruption=disruption)
    env.reset(np.arange(100), render=False)
    rng = np.random.default_rng(0)
    for _ in range(env.horizon):
        env.step(env.expert_action(rng), render=False)
    assert env.success.mean() >= 0.99


def test_upscale_repeats_pixels():
    frames = PocketEnvironment().reset([0, 1])
    large = upscale(frames, 4)
    assert large.shape == (2, 64, 64, 3)
    assert np.array_equal(large[:, 3::4, 3::4], frames) and np.array_equal(large[:, ::4, ::4], frames)
