"""What the gate refuses: each bound on its own, named with its value and its knob."""

from __future__ import annotations

import pytest

from cluster.recipes.gate import missed_bounds
from wmpo_ray.config.run import GateConfig

GOOD = {
    "label_agreement": 0.95,
    "f1": 0.95,
    "grasp_agreement": 0.9,
    "imagined_success": 0.5,
    "real_success": 0.5,
    "false_positives": 6,
    "num": 100,
    "safe_horizon": 24,
}


def test_a_world_within_all_bounds_passes():
    assert missed_bounds(GOOD, GateConfig(max_false_positives=0.06, min_safe_horizon=24)) == []


@pytest.mark.parametrize(
    ("metrics", "bounds", "said"),
    [
        ({"label_agreement": 0.8}, {}, "label_agreement 0.800 < gate.min_label_agreement=0.85"),
        ({"f1": 0.8}, {}, "f1 0.800 < gate.min_f1=0.85"),
        ({"grasp_agreement": 0.7}, {}, "grasp_agreement 0.700 < gate.min_event_agreement=0.8"),
        ({"imagined_success": 0.7}, {}, "differ by 0.200 > gate.max_success_gap=0.12"),
        ({}, {"max_false_positives": 0.05}, "false positives 0.060 of the replays > gate.max_false_positives=0.05"),
        ({}, {"min_safe_horizon": 25}, "safe horizon 24 steps < gate.min_safe_horizon=25"),
    ],
)
def test_each_missed_bound_is_named(metrics, bounds, said):
    (miss,) = missed_bounds(GOOD | metrics, GateConfig(**bounds))
    assert said in miss
