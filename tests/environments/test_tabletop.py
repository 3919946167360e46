"""Small tabletop tasks with the real robosuite: what an action means, what is seen, exact scenes, play."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.implementations import environment_section, require_simulator
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.tabletop.table_layout import SIZE
from wmpo_ray.environments.tabletop.table_view import blue_seen, middle_of, orange_seen
from wmpo_ray.kinds import ENVIRONMENTS
from wmpo_ray.registry import make_environment
from wmpo_ray.world_models.target_views import draw_targets

NO_FRAMES = np.zeros((0, 0, 0, 3), np.uint8)
KINDS = ("lift", "stack")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    require_simulator(request.param)
    return request.param


@pytest.fixture(scope="module")
def environment(kind):
    return make_environment(environment_section(kind))


@pytest.fixture
def place(environment):
    def placed(*seeds: int):
        environment.restore(seeded_starts(seeds))
        return environment

    return placed


@pytest.mark.parametrize("kind", KINDS)
def test_the_facts_are_known_without_the_simulator(kind):
    assert environment_facts(environment_section(kind)).frame_shape == (SIZE, SIZE, 3)


def test_the_hand_goes_where_an_action_says(place):
    environment = place(0)
    for target in ([0.5, -0.5, 0.4], [-0.4, 0.3, 0.6]):
        for _ in range(14):
            environment.advance(np.array([[*target, -1.0]], np.float32))
        scene = environment.scene
        scene.load(environment._states[0])
        np.testing.assert_allclose(scene.box.to_unit(scene.hand), target, atol=0.1)


def test_both_views_show_the_cubes_where_they_are(place):
    environment = place(*range(8))
    frames = environment.render()
    assert np.median(frames) == 0, "there is nothing behind the scene"
    scene, seen = environment.scene, (orange_seen(frames), blue_seen(frames))
    pixel = scene.box.height / (SIZE // 2)
    for i, state in enumerate(environment._states):
        scene.load(state)
        for (x, y, z), cube in zip(scene.cube_positions, seen, strict=False):
            rows, columns, mass = middle_of(cube[i])
            for view, (across, low) in enumerate(((y, scene.box.low[1]), (x, scene.box.low[0]))):
                if mass[view] < 8:
                    continue  # the other cube stands before it
                assert columns[view] == pytest.approx((across - low) / pixel, abs=0.7)
                assert rows[view] == pytest.approx((scene.box.high[2] - z) / pixel, abs=0.8)


def test_a_scene_goes_on_from_what_was_saved_to_the_last_bit(place):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (12, 3, 4)).astype(np.float32)
    environment = place(0, 1, 2)
    for action in actions[:6]:
        environment.advance(action)
    saved = environment.save()
    for action in actions[6:]:
        environment.advance(action)
    expected, frames = environment.save(), environment.render()
    environment.restore([StartState(NO_FRAMES, "", None, "", state) for state in saved[::-1]])
    for action in actions[6:]:
        environment.advance(action[::-1])
    assert environment.save() == expected[::-1]
    assert np.array_equal(environment.render(), frames[::-1])


def test_what_is_no_saved_scene_is_refused(environment):
    with pytest.raises(ValueError, match="has 24 bytes, a scene has"):
        environment.restore([StartState(NO_FRAMES, "", None, "", bytes(24))])
    with pytest.raises(ValueError, match="start 0 has no scene"):
        environment.restore([StartState(NO_FRAMES, "", None)])


def test_a_hostile_scene_is_refused_and_the_scenes_before_it_stay(place):
    environment = place(0, 1)
    (good, _), before = environment.save(), environment.render()
    numbers = np.frombuffer(good)
    for where, value, message in ((1, np.nan, "not finite"), (0, np.inf, "in time"), (-1, 7.0, "7 for drop")):
        wrong = numbers.copy()
        wrong[where] = value
        starts = [StartState(NO_FRAMES, "", None, "", state) for state in (good, wrong.tobytes())]
        with pytest.raises(ValueError, match=message):
            environment.restore(starts)
        assert np.array_equal(environment.render(), before)


@pytest.mark.parametrize("actions", [np.zeros((1, 7)), np.zeros((2, 4)), np.zeros(4), np.full((1, 4), np.nan)])
def test_actions_of_another_shape_or_not_finite_are_refused(place, actions):
    environment = place(0)
    before = environment.save()
    with pytest.raises(ValueError, match=r"expected finite numbers of shape \(1, 4\)"):
        environment.advance(actions)
    assert environment.save() == before


def test_the_layout_aims_at_where_the_hand_is_seen(kind, place):
    """Both views, drawn as world models see it: the target's square lies on the fingers once they are there."""
    environment, target = place(1), [0.3, -0.4, 0.2, -1.0]
    for _ in range(10):
        environment.advance(np.array([target], np.float32))
    layout = environment_facts(environment_section(kind)).layout
    drawn = draw_targets(torch.tensor([[target]]), SIZE, SIZE, layout)[0, 0].numpy()
    frame = environment.render()[0].astype(int)
    green = ((frame[..., 1] - frame[..., 0] > 60) & (frame[..., 1] > frame[..., 2])).astype(float)
    for rows in (slice(0, SIZE // 2), slice(SIZE // 2, SIZE)):
        place_of = [(weight[rows] * np.arange(SIZE)).sum() / weight[rows].sum() for weight in (drawn, green)]
        assert place_of[0] == pytest.approx(place_of[1], abs=1.2)


def test_play_is_the_same_for_a_seed_and_touches_the_cube(kind, environment):
    found, section = ENVIRONMENTS.find(kind), environment_section(kind, horizon=8)
    one, other = (next(iter(found.play(section, 6, 5))) for _ in range(2))
    assert np.array_equal(one.frames, other.frames) and np.array_equal(one.actions, other.actions)
    assert one.frames.shape == (6, 9, SIZE, SIZE, 3) and one.contact.shape == (6, 8)
    assert 0 < one.contact.mean() < 1
