"""The small Stack with the real robosuite: an expert that stacks, what counts as success, what as lost."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.implementations import environment_section, require_simulator
from wmpo_ray.core.observations import StartState
from wmpo_ray.core.starts import seeded_starts, start_seeds
from wmpo_ray.environments.tabletop.table_scene import TABLE_Z
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import rollout_expert

OPEN_AND_UP = np.array([[0.0, 0.0, 0.95, -1.0]], np.float32)


@pytest.fixture(scope="module")
def environment():
    require_simulator("stack")
    return make_environment(environment_section("stack"))


def carried(environment, seed: int):
    """The scene of a seed with the cube in the hand, above the table."""
    environment.restore(seeded_starts([seed]))
    rng = np.random.default_rng(0)
    for _ in range(30):
        environment.advance(environment.expert_action(rng))
        environment.scene.load(environment._states[0])
        if environment.scene.grasped() and environment.scene.cube[2] > TABLE_Z + 0.06:
            return environment
    raise AssertionError("the expert has not taken the cube")


def test_cubes_start_on_the_table_with_room_for_the_fingers(environment):
    environment.restore(seeded_starts(range(50)))
    for state in environment._states:
        environment.scene.load(state)
        one, other = environment.scene.cube_positions
        assert abs(one[0] - other[0]) > 0.059 or abs(one[1] - other[1]) > 0.089
        assert max(one[2], other[2]) < TABLE_Z + 0.03


def test_the_expert_stacks_from_unseen_starts_and_the_pixels_show_it(environment):
    episodes = rollout_expert(environment, start_seeds("evaluate", 12, 0), 0.003, ("test",))
    assert episodes.success.mean() > 0.9 and episodes.lengths.max() <= 36
    assert not episodes.failures["no_grasp"].any()
    assert not episodes.failures["drop"][episodes.success].any(), "a cube that was put down was not lost"
    starts = np.stack([episodes.frames[i, :1] for i in range(12)])
    assert not environment.detect_events(starts)["over"].any(), "at the start they lie beside each other"
    ends = np.stack([episodes.frames[i, n - 1 : n + 1] for i, n in enumerate(episodes.lengths)])
    assert (environment.detect_events(ends)["over"] == episodes.success).mean() > 0.8


def test_a_cube_that_is_held_over_the_other_is_not_stacked(environment):
    carried(environment, 3)
    assert not environment.success[0] and not environment.failures["drop"][0]


def test_a_cube_that_fell_on_the_table_has_been_dropped(environment):
    carried(environment, 3)
    for _ in range(6):
        environment.advance(OPEN_AND_UP)
    assert environment.failures["drop"][0] and not environment.success[0]


def test_a_saved_scene_knows_that_the_cube_was_held(environment):
    """A failure that was noted before a scene was saved is noted after it: half an episode is judged as the whole."""
    carried(environment, 3)
    saved = environment.save()
    environment.restore([StartState(np.zeros((0, 0, 0, 3), np.uint8), "", None, "", saved[0])])
    assert not environment.failures["no_grasp"][0]
    for _ in range(6):
        environment.advance(OPEN_AND_UP)
    assert environment.failures["drop"][0]
