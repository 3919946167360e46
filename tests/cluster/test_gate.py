"""What the gate refuses: each bound on its own, named with its value and its knob; and that it holds few replays."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cluster.recipes.gating.gate import UNMEASURED, missed_bounds, verdict
from cluster.recipes.gating.task_choice import with_tasks
from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.recipe_table import steps_of
from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config, GateConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.observations import StartState
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


def test_a_task_out_of_bounds_is_left_out_and_all_of_them_stop_the_run():
    wrong = GOOD | {"f1": 0.5}
    assert verdict(wrong, {"a": GOOD, "b": wrong}, GateConfig()) == ([], {"b": "f1 0.500 < gate.min_f1=0.85"})
    misses, _ = verdict(wrong, {"a": wrong, "b": wrong}, GateConfig())
    assert misses == ["a: f1 0.500 < gate.min_f1=0.85", "b: f1 0.500 < gate.min_f1=0.85"]
    assert verdict(GOOD, {"a": GOOD, "b": GOOD}, GateConfig()) == ([], {})
    assert verdict(GOOD, {"a": GOOD, "b": {}}, GateConfig()) == ([], {"b": UNMEASURED})
    assert verdict(wrong, {}, GateConfig())[0] == missed_bounds(wrong, GateConfig()), "of one task as ever"


def test_nothing_begins_from_a_task_that_is_left_out():
    config = config_of_gate()
    push = "push the block onto the pink mark"
    starts = [StartState(FRAME, text, i) for i, text in enumerate([push, "put the block into the blue pocket"] * 2)]
    assert [start.task for start in with_tasks(starts, config, ())] == ["push", "pocket"] * 2
    assert [start.seed for start in with_tasks(starts, config, ["push"])] == [1, 3]
    with pytest.raises(UserError, match="no episode was collected of the tasks that are left"):
        with_tasks(starts[:1], config, ["push"])
    with pytest.raises(UserError, match="an instruction of no task, 'fly'"):
        with_tasks([StartState(FRAME, "fly", 0)], config, ())
    assert with_tasks(starts, load_config("smoke"), ()) == starts


def test_the_gate_is_part_of_what_a_policy_of_several_tasks_is_made_from():
    needs = {step.label: step.needs for step in steps_of(config_of_gate())}
    assert (
        "gate" in needs["optimize"]
        and "gate" not in {s.label: s.needs for s in steps_of(load_config("smoke"))}["optimize"]
    )


NUM = 8
FRAME = np.zeros((1, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A run of two tasks in the perfect world, whose replays are exact, up to the gate."""
    out = tmp_path_factory.mktemp("gate") / "run"
    run_pipeline(config_of_gate(), out, serial=True, until="reward-model")
    return out


def config_of_gate() -> Config:
    settings = (
        'environment.task_names=["pocket","push"]',
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
    tasks = metrics["tasks"]
    assert list(tasks) == ["pocket", "push"] and metrics["left_out"] == {}, "forced: none is left out"
    assert set(metrics["missed"]) <= set(tasks)
    for key in ("num", "false_positives", "false_negatives"):
        assert sum(own[key] for own in tasks.values()) == metrics[key]
    for batch in (3, 1):
        with monkeypatch.context() as patch:
            others = outcome(prepared, patch, batch)
        assert others[2] == [min(batch, num - i) for num in (NUM, 5) for i in range(0, num, batch)]
        assert others[0] == metrics and others[1].keys() == shown.keys()
        assert all(np.array_equal(others[1][name], values) for name, values in shown.items())


def test_force_says_that_it_comes_too_late_for_a_task_that_is_left_out(prepared):
    run_pipeline(config_of_gate(), prepared, serial=True, only="gate", force=True)
    summary = json.loads((prepared / "summary.json").read_text())
    summary["stages"]["gate"]["metrics"]["left_out"] = {"push": "f1 0.500 < gate.min_f1=0.85"}
    (prepared / "summary.json").write_text(json.dumps(summary))
    run_pipeline(config_of_gate(), prepared, serial=True, until="gate", resume=True, force=True)
    lines = [json.loads(line) for line in (prepared / "events.jsonl").read_text().splitlines()]
    (said,) = [line["text"] for line in lines if line["event"] == "task.left_out" and "--force" in line["text"]]
    assert said.startswith("push: stays left out") and "[gate]" in said
