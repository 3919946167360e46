"""What every world must hold, a learned one and an environment alike."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.implementations import WORLDS, make_starts, random_actions
from wmpo_ray.core.interfaces import World
from wmpo_ray.core.observations import Transition

ABILITIES = {"imagines", "restore", "expert", "events", "render", "reconstructs", "slots"}
SEEDS = [5, 6, 7]


@pytest.fixture(params=WORLDS)
def world(request) -> World:
    return WORLDS[request.param]()


def assert_same(one: Transition, other: Transition) -> None:
    for name in ("frames", "done", "success", "num_steps"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert np.array_equal(one.observation.frames, other.observation.frames)
    assert one.failures.keys() == other.failures.keys()


def test_a_transition_has_the_announced_shapes(world):
    assert isinstance(world, World) and world.abilities <= ABILITIES
    starts = make_starts()
    state, seen = world.start(starts)
    assert np.array_equal(seen.frames, np.stack([start.frames[-1] for start in starts]))
    assert seen.instructions == tuple(start.instruction for start in starts)
    _, made = world.step_chunk(state, random_actions(), SEEDS)
    assert made.frames.shape == (3, world.chunk_length, 16, 16, 3) and made.frames.dtype == np.uint8
    assert np.array_equal(made.observation.frames, made.frames[:, -1])
    assert made.observation.instructions == seen.instructions
    assert made.done.shape == (3,) and made.done.dtype == bool
    assert made.success is None or (made.success.shape == (3,) and made.success.dtype == bool)
    assert made.num_steps.tolist() == [world.chunk_length] * 3


def test_a_step_is_pure_whatever_is_stepped_in_between(world):
    start, _ = world.start(make_starts())
    after, first = world.step_chunk(start, random_actions(), SEEDS)
    _, second = world.step_chunk(after, random_actions(seed=1), SEEDS)
    _, branch = world.step_chunk(start, random_actions(seed=2), SEEDS)
    other, _ = world.start(make_starts(5)[3:])
    world.step_chunk(other, random_actions(2), SEEDS[:2])
    assert_same(world.step_chunk(start, random_actions(), SEEDS)[1], first)
    assert_same(world.step_chunk(after, random_actions(seed=1), SEEDS)[1], second)
    assert not np.array_equal(branch.frames, first.frames), "actions matter"


def test_actions_may_be_overwritten_afterwards(world):
    start, _ = world.start(make_starts())
    actions = random_actions()
    after, _ = world.step_chunk(start, actions, SEEDS)
    actions.zero_()
    expected = world.step_chunk(after, random_actions(seed=1), SEEDS)[1]
    world.start(make_starts())
    assert_same(world.step_chunk(after, random_actions(seed=1), SEEDS)[1], expected)


def test_a_row_does_not_depend_on_its_neighbours(world):
    starts = make_starts()
    _, together = world.step_chunk(world.start(starts)[0], random_actions(), SEEDS)
    _, alone = world.step_chunk(world.start(starts[1:2])[0], random_actions()[1:2], SEEDS[1:2])
    # A value at a rounding edge may fall to either side.
    assert np.abs(alone.frames[0].astype(int) - together.frames[1]).max() <= 1


def test_what_is_rendered_changes_nothing_else(world):
    start, _ = world.start(make_starts())
    chunks = [random_actions(seed=seed) for seed in (0, 1)]
    results = {}
    for mode in ("all", "last", "none"):
        state, made = start, []
        for actions in chunks:
            state, transition = world.step_chunk(state, actions, SEEDS, mode)
            made.append(transition)
        results[mode] = made
        for transition in made:
            assert (transition.frames is None) == (mode != "all")
            assert (transition.observation is None) == (mode == "none")
    for whole, last, none in zip(*results.values(), strict=True):
        assert np.array_equal(whole.observation.frames, last.observation.frames)
        for other in (last, none):
            assert np.array_equal(whole.done, other.done) and np.array_equal(whole.success, other.success)
            assert np.array_equal(whole.num_steps, other.num_steps)


def test_what_has_ended_stays_as_it_is():
    """In the worlds that know of an end: an expert brings every scene there."""
    for make in WORLDS.values():
        world = make()
        if "expert" not in world.abilities:
            continue
        state, _ = world.start(make_starts())
        rng, steps, made = np.random.default_rng(0), np.zeros(3, int), None
        while made is None or not made.done.all():
            state, made = world.step_expert(state, rng, 0.0)
            steps += made.num_steps
            assert (made.num_steps[~made.done] == world.chunk_length).all()
        assert made.success.all() and (steps > 0).all()
        _, later = world.step_chunk(state, random_actions(), SEEDS)
        assert later.done.all() and later.success.all() and not later.num_steps.any()
        assert np.array_equal(later.frames, np.repeat(made.frames[:, -1:], world.chunk_length, 1))


def test_states_that_can_be_cut_step_as_they_would_have_together(world):
    if "slots" not in world.abilities:
        assert not hasattr(world.start(make_starts())[0], "with_rows"), 'name the ability "slots"'
        return
    start, _ = world.start(make_starts())
    order = np.array([2, 0, 1])
    after, made = world.step_chunk(start.rows(order), random_actions()[order], [SEEDS[i] for i in order])
    _, expected = world.step_chunk(start, random_actions(), SEEDS)
    assert np.abs(made.frames.astype(int) - expected.frames[order]).max() <= 1, "another shape may round otherwise"
    together = start.with_rows(order[:2], after.rows(np.arange(2)))
    back = together.rows(order[:2])
    one, other = (
        world.step_chunk(state, random_actions(2), SEEDS[:2])[1] for state in (back, after.rows(np.arange(2)))
    )
    assert_same(one, other)
