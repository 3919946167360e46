"""Policies that a run saves are known to `wmpo checkpoints inspect`, by what stands in their folder alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.openvla import small_policy
from wmpo_ray.checkpoints.inspection import check_loadable, inspect_path
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig


@pytest.fixture
def folder(tmp_path) -> Path:
    TinyPolicy(TinyPolicyHFConfig(width=16, num_layers=1, vocabulary=["put"])).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def test_a_tiny_policy_is_known_and_fits(folder):
    found = inspect_path(folder)
    assert found.kind == "policy of wmpo (tiny)" and found.compared and found.loadable
    assert found.num_fitting == len(load_file(folder / "model.safetensors"))
    assert found.companions["actions"] == "chunks of 4 x 3, 256 bins"


def test_what_a_tiny_policy_lacks_is_listed(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "heads": torch.zeros(1), "more": torch.zeros(1)}, folder / "model.safetensors")
    found = inspect_path(folder)
    assert found.foreign == ["more"] and len(found.wrong) == 1 and "heads" in found.wrong[0] and not found.loadable


def test_more_layers_than_weights_are_refused_before_they_are_built(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_layers": 10**9}))
    assert "declares 1000000000 layers" in inspect_path(folder).problems[0]


def test_statistics_of_another_robot_are_reported_and_are_no_damage(tmp_path):
    """A run sets the dimensions of actions from its robot, so that inspecting and checking say the same."""
    small_policy().save_pretrained(tmp_path)
    action = {"q01": [0.0] * 14, "q99": [1.0] * 14}
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"aloha": {"action": action}}))
    found = inspect_path(tmp_path)
    assert found.loadable and found.companions["action statistics"].endswith("aloha; of 14 dimensions")
    check_loadable(tmp_path, "policy.pretrained")
