"""The small Lift with the real robosuite: what an action means, what is seen, exact scenes, an expert that lifts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.implementations import environment_section, require_simulator
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.starts import seeded_starts, start_seeds
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.environments.lift.lift_scene import to_unit
from wmpo_ray.environments.lift.lift_settings import LAYOUT, SIZE
from wmpo_ray.kinds import ENVIRONMENTS
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import rollout_expert
from wmpo_ray.world_models.target_views import draw_targets

NO_FRAMES = np.zeros((0, 0, 0, 3), np.uint8)


@pytest.fixture(scope="module")
def environment():
    require_simulator("lift")
    return make_environment(environment_section("lift"))


@pytest.fixture
def place(environment):
    def placed(*seeds: int):
        environment.restore(seeded_starts(seeds))
        return environment

    return placed


def test_the_facts_are_known_without_the_simulator():
    assert environment_facts(environment_section("lift")).frame_shape == (SIZE, SIZE, 3)


def test_the_hand_goes_where_an_action_says(place):
    environment = place(0)
    for target in ([0.5, -0.5, 0.4], [-0.4, 0.3, 0.6]):
        for _ in range(8):
            environment.advance(np.array([[*target, -1.0]], np.float32))
        environment.scene.load(environment._states[0])
        np.testing.assert_allclose(to_unit(environment.scene.hand), target, atol=0.08)


def test_both_views_show_the_cube_where_it_is(place):
    environment = place(*range(8))
    frames = environment.render().astype(int)
    assert np.median(frames) == 0, "there is nothing behind the scene"
    orange = (frames[..., 0] > 150) & (frames[..., 2] < 100)
    for i, state in enumerate(environment._states):
        environment.scene.load(state)
        x, y, z = environment.scene.cube_position
        for rows, across in ((slice(0, SIZE // 2), y), (slice(SIZE // 2, SIZE), x)):
            seen = orange[i, rows]
            row, column = (np.array(np.nonzero(seen)).mean(1) + 0.5).tolist()
            assert column == pytest.approx((across + 0.12) * 100, abs=0.6), "10 mm a pixel"
            assert row == pytest.approx((0.915 - z) * 100, abs=0.8)


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


def test_the_expert_lifts_from_unseen_starts_and_the_pixels_show_it(environment):
    episodes = rollout_expert(environment, start_seeds("evaluate", 12, 0), 0.006, ("test",))
    assert episodes.success.all() and episodes.lengths.max() <= 20
    assert not episodes.failures["no_grasp"].any()
    videos = np.stack([episodes.frames[i, :9] for i in range(12)])
    assert not environment.detect_events(videos[:, :1])["lift"].any(), "at the start it lies on the table"
    ends = np.stack([episodes.frames[i, n - 1 : n + 1] for i, n in enumerate(episodes.lengths)])
    assert environment.detect_events(ends)["lift"].mean() > 0.8, "it counts as lifted from 2 pixels on"


def test_a_cube_that_is_let_go_has_been_dropped(place):
    environment, rng = place(3), np.random.default_rng(0)
    environment.ends_on_success = False
    try:
        for _ in range(14):
            environment.advance(environment.expert_action(rng))
        for _ in range(6):
            environment.advance(np.array([[0.0, 0.0, 0.6, -1.0]], np.float32))
    finally:
        environment.ends_on_success = True
    assert environment.failures["drop"][0] and not environment.failures["no_grasp"][0]


def test_the_layout_aims_at_where_the_hand_is_seen(place):
    """Both views, drawn as world models see it: the target's square lies on the fingers once they are there."""
    environment, target = place(1), [0.3, -0.4, 0.2, -1.0]
    for _ in range(10):
        environment.advance(np.array([target], np.float32))
    drawn = draw_targets(torch.tensor([[target]]), SIZE, SIZE, LAYOUT)[0, 0].numpy()
    frame = environment.render()[0].astype(int)
    green = (frame[..., 1] - frame[..., 0] > 60).astype(float)
    for rows in (slice(0, SIZE // 2), slice(SIZE // 2, SIZE)):
        place_of = [(weight[rows] * np.arange(SIZE)).sum() / weight[rows].sum() for weight in (drawn, green)]
        assert place_of[0] == pytest.approx(place_of[1], abs=1.2)


def test_play_is_the_same_for_a_seed_and_touches_the_cube(environment):
    kind = ENVIRONMENTS.find("lift")
    one, other = (next(iter(kind.play(environment_section("lift", horizon=8), 6, 5))) for _ in range(2))
    assert np.array_equal(one.frames, other.frames) and np.array_equal(one.actions, other.actions)
    assert one.frames.shape == (6, 9, SIZE, SIZE, 3) and one.contact.shape == (6, 8)
    assert 0 < one.contact.mean() < 1
