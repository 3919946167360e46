"""What the gate refuses: each bound on its own, named with its value and its knob; and that it holds few replays."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cluster.recipes.gating.gate import missed_bounds
from cluster.recipes.pipeline import run_pipeline
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config, GateConfig
from wmpo_ray.data import episodes
from wmpo_ray.environments.facts import environment_facts
from wmpo_ray.rollout.judge import VideoJudge
from wmpo_ray.runs.folder import RunFolder

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


NUM = 8


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A run in the perfect world, whose replays are exact, up to the gate."""
    out = tmp_path_factory.mktemp("gate") / "run"
    run_pipeline(config_of_gate(), out, serial=True, until="reward-model")
    return out


def config_of_gate() -> Config:
    settings = (
        "world_model.kind=simulator",
        "reward.verify.enabled=false",
        "policy.cloning.steps=20",
        "reward.steps=5",
        f"gate.num_trajectories={NUM}",
        "gate.num_counterfactuals=5",
    )
    return load_config("smoke", settings)


def outcome(prepared: Path, monkeypatch, batch: int) -> tuple[dict, dict[str, np.ndarray], list[int]]:
    """(metrics, arrays for the report, sizes of what was judged) of a gate that may hold the frames of `batch` episodes."""
    sizes, judge = [], VideoJudge.judge
    monkeypatch.setattr(VideoJudge, "judge", lambda self, videos: sizes.append(len(videos)) or judge(self, videos))
    config = config_of_gate()
    facts = environment_facts(config.environment)
    monkeypatch.setattr(
        episodes, "BATCH_BYTES", batch * (config.environment.horizon + 1) * math.prod(facts.frame_shape)
    )
    run_pipeline(config, prepared, serial=True, only="gate", force=True)
    assert not list((prepared / "trajectories").glob("gate-replays*")), "replays are gone afterwards"
    with np.load(prepared / "videos" / "side_by_side.npz") as arrays:
        shown = dict(arrays)
    return RunFolder(prepared).metrics("gate"), shown, sizes


def test_it_decides_the_same_however_few_replays_it_holds(prepared, monkeypatch):
    metrics, shown, sizes = outcome(prepared, monkeypatch, NUM)
    assert sizes == [NUM, 5] and metrics["counterfactual_num"] == 5 and metrics["grasp_agreement"] == 1.0
    for batch in (3, 1):
        with monkeypatch.context() as patch:
            others = outcome(prepared, patch, batch)
        assert others[2] == [min(batch, num - i) for num in (NUM, 5) for i in range(0, num, batch)]
        assert others[0] == metrics and others[1].keys() == shown.keys()
        assert all(np.array_equal(others[1][name], values) for name, values in shown.items())
