"""The small Lift with the real robosuite: an expert that lifts, and what counts as lost."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.implementations import environment_section, require_simulator
from wmpo_ray.core.starts import seeded_starts, start_seeds
from wmpo_ray.registry import make_environment
from wmpo_ray.rollout.evaluation import rollout_expert


@pytest.fixture(scope="module")
def environment():
    require_simulator("lift")
    return make_environment(environment_section("lift"))


def test_the_expert_lifts_from_unseen_starts_and_the_pixels_show_it(environment):
    episodes = rollout_expert(environment, start_seeds("evaluate", 12, 0), 0.006, ("test",))
    assert episodes.success.all() and episodes.lengths.max() <= 20
    assert not episodes.failures["no_grasp"].any()
    videos = np.stack([episodes.frames[i, :9] for i in range(12)])
    assert not environment.detect_events(videos[:, :1])["lift"].any(), "at the start it lies on the table"
    ends = np.stack([episodes.frames[i, n - 1 : n + 1] for i, n in enumerate(episodes.lengths)])
    assert environment.detect_events(ends)["lift"].mean() > 0.8, "it counts as lifted from 2 pixels on"


def test_a_cube_that_is_let_go_has_been_dropped(environment):
    environment.restore(seeded_starts([3]))
    rng = np.random.default_rng(0)
    environment.ends_on_success = False
    try:
        for _ in range(14):
            environment.advance(environment.expert_action(rng))
        for _ in range(6):
            environment.advance(np.array([[0.0, 0.0, 0.6, -1.0]], np.float32))
    finally:
        environment.ends_on_success = True
    assert environment.failures["drop"][0] and not environment.failures["no_grasp"][0]
