"""What every simulator must hold; what the world made of it holds besides is in `test_worlds.py`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.support import implementations
from tests.support.implementations import (
    SEVERAL_TASKS,
    environment_section,
    random_actions,
    require_simulator,
    small_environment,
)
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import AGENT, Environment
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.registry import disruptions_of, make_environment

ENVIRONMENTS = implementations.ENVIRONMENTS | {name: partial(small_environment, name) for name in SEVERAL_TASKS}
ABILITIES = {"expert", "events", "restore", "render", "positions", "locate", "failures", "chunks"}


@pytest.fixture(params=ENVIRONMENTS)
def environment(request) -> Environment:
    require_simulator(request.param)
    return ENVIRONMENTS[request.param]()


def place(environment, seeds):
    environment.restore(seeded_starts(seeds))
    return environment.observe()


def everything(environment) -> list[np.ndarray]:
    """All that can be known of the scenes."""
    seen = environment.observe()
    failures = [environment.failures[name] for name in sorted(environment.failures)]
    state = [] if seen.state is None else [seen.state]
    known = [*seen.images.values(), *state, environment.terminated, environment.success, *failures]
    return [np.array(values) for values in known]


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_it_has_the_protocol_and_comes_from_its_section(environment, request):
    assert isinstance(environment, Environment) and environment.abilities <= ABILITIES
    kind = request.node.callspec.params["environment"]
    made = make_environment(environment_section(kind, horizon=12))
    assert type(made) is type(environment) and made.horizon == 12


def test_observations_have_the_announced_shapes(environment):
    seen = place(environment, [3, 4])
    assert seen.frames.shape == (2, *environment.frame_shape) and len(seen) == 2
    assert all(images.dtype == np.uint8 and len(images) == 2 for images in seen.images.values())
    assert np.array_equal(environment.render(), seen.frames), "the first camera is the one that is rendered alone"
    assert seen.state is None or (seen.state.dtype == np.float32 and len(seen.state) == 2)


def test_the_same_seed_and_actions_give_the_same_scene_beside_any_others(environment):
    actions = random_actions(3, 6, dim=environment.action_dim).numpy()
    place(environment, [5, 6, 7])
    for step in range(6):
        environment.advance(actions[:, step])
    together = everything(environment)
    place(environment, [6])
    for step in range(6):
        environment.advance(actions[1:2, step])
    assert same([values[1:2] for values in together], everything(environment))


def test_looking_changes_nothing(environment):
    actions = random_actions(2, 6, dim=environment.action_dim).numpy()
    ends = []
    for looks in (False, True):
        place(environment, [3, 4])
        for step in range(6):
            environment.advance(actions[:, step])
            if looks:
                environment.render()
                environment.observe()
        ends.append(everything(environment))
    assert same(*ends)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_actions_that_are_not_finite_are_refused(environment, wrong):
    place(environment, [0, 1])
    actions = np.zeros((2, environment.action_dim), np.float32)
    actions[1, 0] = wrong
    with pytest.raises((ValueError, UserError), match="finite"):
        environment.advance(actions)


def test_a_start_without_a_scene_is_refused(environment):
    start = replace(seeded_starts([1])[0], seed=None)
    with pytest.raises(ValueError, match="start 0"):
        environment.restore([start])


@pytest.mark.parametrize("kind", [kind for kind, make in ENVIRONMENTS.items() if "restore" in make().abilities])
def test_a_saved_scene_goes_on_as_it_would_have(kind):
    require_simulator(kind)
    environment = ENVIRONMENTS[kind]()
    actions = random_actions(2, 8, dim=environment.action_dim).numpy()
    place(environment, [3, 4])
    for step in range(3):
        environment.advance(actions[:, step])
    saved, then = environment.save(), everything(environment)
    for step in range(3, 8):
        environment.advance(actions[:, step])
    expected = everything(environment)
    place(environment, [9, 10])
    starts = [
        replace(start, seed=None, saved_state=state) for start, state in zip(seeded_starts([0, 0]), saved, strict=True)
    ]
    environment.restore(starts)
    assert same(everything(environment), then)
    for step in range(3, 8):
        environment.advance(actions[:, step])
    assert same(everything(environment), expected)
    with pytest.raises(ValueError, match="start 0: its saved_state has 3 bytes"):
        environment.restore([replace(starts[0], saved_state=b"abc")])


@pytest.mark.parametrize("kind", [kind for kind, make in ENVIRONMENTS.items() if "expert" in make().abilities])
def test_the_expert_succeeds_and_then_the_scene_holds_still(kind):
    require_simulator(kind)
    environment = small_environment(kind, horizon=200)
    place(environment, range(4))
    rng = np.random.default_rng(0)
    for _ in range(200):
        action = environment.expert_action(rng, 0.0)
        assert action.shape == (4, environment.action_dim) and np.abs(action).max() <= 1
        environment.advance(action)
    assert environment.success.all() and environment.terminated.all()
    before = everything(environment)
    environment.advance(-action)
    assert same(before, everything(environment))


@pytest.mark.parametrize("kind", [kind for kind, make in ENVIRONMENTS.items() if "events" in make().abilities])
def test_events_are_read_from_videos(kind):
    require_simulator(kind)
    environment = ENVIRONMENTS[kind]()
    frames = place(environment, range(4)).frames
    events = environment.detect_events(np.repeat(frames[:, None], 3, 1))
    assert events and all(flags.shape == (4,) and flags.dtype == bool for flags in events.values())


@pytest.mark.parametrize("kind", [kind for kind, make in ENVIRONMENTS.items() if "positions" in make().abilities])
def test_positions_are_those_of_the_scene_and_can_be_read_from_its_frames(kind):
    require_simulator(kind)
    environment = small_environment(kind, horizon=8)
    place(environment, range(12))
    environment.advance(random_actions(12, 1, dim=environment.action_dim).numpy()[:, 0])
    known = environment.positions()
    assert AGENT in known and environment.position_unit
    assert all(len(position) == 12 and np.isfinite(position).all() for position in known.values())
    if "locate" in environment.abilities:
        frames = environment.render()
        for shape in ((12,), (3, 4)):
            found = environment.locate(frames.reshape(*shape, *environment.frame_shape))
            assert found.keys() == known.keys()
            for name, position in known.items():
                seen = found[name].reshape(position.shape)
                spread = np.abs(position - position.mean(0)).mean()
                assert np.nanmean(np.abs(seen - position)) < spread / 4, f"{name} is not where it was found"


@pytest.mark.parametrize("kind", [kind for kind, make in ENVIRONMENTS.items() if "failures" in make().abilities])
def test_failures_are_read_from_videos_under_the_names_of_the_environment(kind):
    require_simulator(kind)
    environment = ENVIRONMENTS[kind]()
    seen = place(environment, range(4))
    videos, actions = np.repeat(seen.frames[:, None], 3, 1), np.zeros((4, 2, environment.action_dim), np.float32)
    found = environment.detect_failures(videos, actions, seen.instructions, np.full(4, 2))
    assert tuple(found) == tuple(environment.failures)
    assert all(flags.shape == (4,) and flags.dtype == bool for flags in found.values())


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_what_a_kind_disrupts_shows_in_the_first_frame_of_the_same_start(kind):
    section = environment_section(kind)
    if not (names := disruptions_of(section)):
        pytest.skip(f"{kind} disrupts nothing")
    require_simulator(kind)

    def frames(disruption: str) -> np.ndarray:
        environment = make_environment(environment_section(kind, disruption=disruption))
        return place(environment, [0, 1]).frames.astype(int)

    plain = frames("none")
    for name in names:
        changed = frames(name)
        assert changed.shape == plain.shape and (np.abs(changed - plain).max((1, 2, 3)) > 20).all(), name
