"""A whole run with a flow-matching policy: cloned, collected, aligned, rewarded, improved and evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.recipes.pipeline import run_pipeline
from wmpo_ray.config.loading import load_config
from wmpo_ray.policies.flow.flow_policy import FlowPolicy
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.outcomes import read_outcomes, run_outcomes_file
from wmpo_ray.runs.trackers.jsonl import JsonlTracker

# Every group is taken, whatever its outcomes: so small a policy may never succeed.
SMALLEST = (
    "policy.kind=flow",
    "policy.network.width=32",
    "policy.cloning.steps=80",
    "demos.num_trajectories=24",
    "collect.num_trajectories=16",
    "reward.steps=20",
    "world_model.alignment.steps=2",
    "gate.num_trajectories=4",
    "filter.dynamic_sampling=false",
    "grpo.ratio=step",
    "grpo.num_updates=1",
    "evaluation={num_starts=8, every_updates=0, temperature=0}",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flow") / "run"
    run_pipeline(load_config("smoke", SMALLEST), folder, serial=True)
    return folder


def test_every_stage_does_its_part(run):
    assert list(RunFolder(run).summary["stages"]) == [
        "demos", "policy", "collect", "world-model", "reward-model", "gate", "optimize", "evaluate",
    ]  # fmt: skip
    for name in ("base-policy", "policy"):
        assert FlowPolicy.load(run / "models" / name).chunk_length == 4
    (line,) = [line for line in JsonlTracker.read(run) if "policy/loss" in line]
    assert line["policy/logprob_distance"] < 1e-4 and np.isfinite(line["policy/loss"])
    assert len(read_outcomes(run_outcomes_file(run, "final")).success) == 8
    assert (run / "report" / "index.html").is_file()


def test_the_preset_is_flow_grpo():
    config = load_config("flow-demo")
    assert (config.policy.kind, config.grpo.ratio, config.evaluation.temperature) == ("flow", "step", 0.0)
