"""The published policy's arithmetic, against numbers of the authors' own classes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wmpo_ray.core.errors import UserError
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.parity.image_fixtures import check as check_images
from wmpo_ray.parity.policy_fixtures import check

GOLDEN = Path(__file__).parents[1] / "golden"
POLICY, IMAGES = GOLDEN / "policy", GOLDEN / "image_preproc"


@pytest.fixture(scope="module")
def cases() -> list[ParityCase]:
    return check(POLICY)


def test_every_number_of_the_policy_is_within_its_tolerance(cases):
    assert [case for case in cases if not case.passed] == []


def test_every_result_in_the_fixtures_is_compared(cases):
    inputs = {"input_ids", "attention_mask", "pixel_values", "sampled_ids", "labels"}
    inputs |= {"encode_values", "table_ids", "unnorm_in"}
    compared = {(case.case.removeprefix("policy/"), case.tensor) for case in cases}
    for path in POLICY.glob("*.safetensors"):
        if path.stem != "model":
            results = {name for name in load_file(path) if name not in inputs and not name.startswith("act.")}
            assert {(path.stem, name) for name in results} - compared == set()


def test_every_image_stage_is_within_its_tolerance():
    cases = check_images(IMAGES)
    assert [case for case in cases if not case.passed] == []
    assert {case.case for case in cases} == {f"image_preproc/img{i}" for i in range(3)}
    assert {case.tensor for case in cases} >= {"pixel_values_exact_consts", "pixel_values_bf16_consts", "all_stages"}


def changed_copy(folder: Path, file: str, name: str, change) -> Path:
    shutil.copytree(POLICY, folder)
    tensors = load_file(folder / file)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / file)
    return folder


def test_a_wrong_weight_and_a_wrong_answer_fail(tmp_path):
    wrong = changed_copy(
        tmp_path / "a", "model.safetensors", "language_model.model.norm.weight", lambda weight: weight * 1.001
    )
    failed = {case.case for case in check(wrong) if not case.passed}
    assert failed == {"policy/forward_a", "policy/forward_padded", "policy/sft", "policy/grads"}
    answer = changed_copy(tmp_path / "b", "action_tokenizer.safetensors", "encoded_ids", lambda ids: ids + 1)
    assert [case.tensor for case in check(answer) if not case.passed] == ["encoded_ids"]


def test_an_answer_that_is_no_number_fails(tmp_path):
    folder = changed_copy(tmp_path / "a", "sft.safetensors", "loss", lambda loss: loss * math.nan)
    (case,) = [case for case in check(folder) if not case.passed]
    assert case.tensor == "loss" and not ParityCase("", "", math.nan, 1.0).passed


def test_sizes_are_those_of_the_config(tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(POLICY, folder)
    config = json.loads((folder / "config.json").read_text())
    config["llama_effective"]["rms_norm_eps"] = 1e-5
    (folder / "config.json").write_text(json.dumps(config))
    assert not all(case.passed for case in check(folder))
    config["tiny_timm_overrides"]["featurizer(dinov2)"]["depth"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"lack vision_backbone.featurizer.blocks.3"):
        check(folder)


def test_what_is_missing_is_named(tmp_path):
    shutil.copytree(POLICY, tmp_path / "policy")
    (tmp_path / "policy" / "sft.safetensors").unlink()
    with pytest.raises(UserError, match=r"sft.safetensors is missing"):
        check(tmp_path / "policy")
    with pytest.raises(UserError, match="holds no img"):
        check_images(tmp_path)
    shutil.copytree(IMAGES, tmp_path / "images")
    (tmp_path / "images" / "img1_input_256.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UserError, match=r"img1_input_256.png is damaged"):
        check_images(tmp_path / "images")


def test_a_check_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    check(POLICY)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
