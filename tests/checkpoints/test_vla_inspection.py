"""Folders of lerobot's policies: what is said of them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from wmpo_ray.checkpoints.inspection import check_loadable, inspect_path

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(("kind", "named"), [("smolvla", "SmolVLA"), ("pi0", "pi0"), ("pi05", "pi0.5")])
def test_folders_of_lerobot_are_known_and_fit(kind, named):
    found = inspect_path(GOLDEN / kind)
    assert named in found.kind and found.loadable, (found.missing, found.foreign, found.wrong, found.problems)
    assert found.companions["type"] == kind and "denoised" in found.companions["actions"]
    assert found.num_fitting == len(found.files.specs) - len(found.dead)


def test_a_folder_of_lerobot_that_lacks_a_tensor_or_a_file_says_which(tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(GOLDEN / "pi0", folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.state_proj.bias"]
    save_file(tensors, folder / "model.safetensors")
    assert inspect_path(folder).missing == ["state_proj.bias"]
    (folder / "policy_preprocessor.json").unlink()
    (problem,) = inspect_path(folder).problems
    assert "has no policy_preprocessor.json" in problem


def test_what_a_smolvla_was_built_on_may_stand_elsewhere(tmp_path):
    folder = shutil.copytree(GOLDEN / "smolvla", tmp_path / "policy")
    shutil.rmtree(folder / "vlm")
    found = inspect_path(folder)
    assert not found.compared and not found.problems and "policy.vla.vlm" in found.companions["built on"]
    check_loadable(folder, "policy.pretrained")  # a run names it: `policy.vla.vlm`


@pytest.mark.parametrize(
    ("name", "before", "after", "problem"),
    [
        ("vlm/config.json", '"hidden_size": 16', '"hidden_size": "a"', "vlm/config.json is damaged: .*hidden_size"),
        ("vlm/tokenizer.json", '"model": {', '"model": 3, "was": {', "tokenizer.json is damaged"),
        ("config.json", 'multiplier": 0.75', 'multiplier": 1e300', r"expert_width_multiplier = 1e\+300"),
        (
            "vlm/config.json",
            '"pad_token_id": 0,\n  "tie',
            '"pad_token_id": 64,\n  "tie',
            "no network can be made of these sizes: .*adding",
        ),
        ("vlm/config.json", '"num_attention_heads": 2', '"num_attention_heads": -1', "num_attention_heads = -1"),
        ("config.json", '"num_expert_layers": -1', '"num_expert_layers": 100000', "num_expert_layers = 100000"),
        ("policy_preprocessor.json", '"eps": 1e-08', '"eps": 1e300', "eps = 1e\\+300"),
    ],
)
def test_settings_of_a_wrong_kind_are_a_problem_in_one_line(tmp_path, name, before, after, problem):
    folder = shutil.copytree(GOLDEN / "smolvla", tmp_path / "policy")
    text = (folder / name).read_text()
    assert before in text
    (folder / name).write_text(text.replace(before, after, 1))
    found = inspect_path(folder)
    assert not found.loadable and found.problems
    assert all("\n" not in line and len(line) < 400 for line in found.problems), found.problems
    assert re.search(problem, found.problems[0]), found.problems
