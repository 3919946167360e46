"""Folders of OpenVLA policies: what is said of them, what is refused, and pickled weights made loadable."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cluster.cli.app import app
from tests.support.hostile_files import Code, edit_json
from tests.support.openvla import small_policy
from wmpo_ray.checkpoints.conversion import convert_checkpoint
from wmpo_ray.checkpoints.inspection import inspect_path
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.observations import Observation
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy

NORM = "language_model.model.norm.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "saved"
    small_policy().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "policy")


def edit_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    content = {**load_file(folder / "model.safetensors"), **tensors}
    save_file({k: v for k, v in content.items() if v is not None}, folder / "model.safetensors")


def pickle_weights(folder: Path, content: dict) -> None:
    """The weights as two files of torch.save with an index, as older folders have them."""
    (folder / "model.safetensors").unlink()
    names = sorted(content)
    halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for part, held in halves.items():
        torch.save({name: content[name] for name in held}, folder / part)
    index = {"weight_map": {name: part for part, held in halves.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        inspect_path(path)
    return str(caught.value)


def wmpo(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


# -- what it is --------------------------------------------------------------------------------------------------


def test_a_policy_fits_and_its_small_files_are_told(folder):
    (folder / "modeling_prismatic.py").write_text("raise SystemExit")
    result = wmpo("checkpoints", "inspect", folder)
    assert result.exit_code == 0, result.output
    for told in (
        *("policy (OpenVLA)", "fine-tuned (OFT)", "chunks of 2 x 3, 256 bins below id 336"),
        *("dataset_statistics.json: coffee, square", "28x28, preprocessor_config.json", "tokenizer.json"),
        "modeling_prismatic.py: never run",
    ):
        assert told in result.stdout, told
    assert inspect_path(folder).num_fitting == len(small_policy().state_dict())


def test_a_policy_as_pretrained_has_its_statistics_in_config_json(folder):
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    for name in ("dataset_statistics.json", "preprocessor_config.json", "tokenizer.json"):
        (folder / name).unlink()
    names = [f"set_{i}" for i in range(6)]
    edit_json(folder / "config.json", norm_stats=dict.fromkeys(names, statistics["square"]), auto_map={"A": "b.C"})
    found = inspect_path(folder)
    assert found.loadable and found.companions["release"] == "OpenVLA, as pretrained"
    assert found.companions["action statistics"].endswith("set_0, set_1, set_2, set_3 and 2 more")
    assert "missing" in found.companions["tokenizer"] and "constants" in found.companions["images"]
    edit_json(folder / "config.json", norm_stats={})
    assert "none" in inspect_path(folder).companions["action statistics"]


def test_missing_foreign_and_misshapen_tensors_and_values_are_listed(folder):
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors = load_file(folder / "model.safetensors")
    head = tensors["language_model.lm_head.weight"].to(torch.bfloat16)
    head[3, 4] = float("nan")
    edit_weights(
        folder,
        **{NORM: None, "projector.fc2.bias": torch.zeros(3), "action_head.weight": torch.zeros(2), name: torch.ones(4)},
        **{"language_model.lm_head.weight": head},
    )
    found = inspect_path(folder)
    assert found.missing == [NORM] and found.foreign == ["action_head.weight"] and found.dead == [name]
    assert len(found.wrong) == 1 and "projector.fc2.bias is F32 (3,)" in found.wrong[0]
    assert found.not_finite == ["language_model.lm_head.weight"] and not found.loadable
    assert wmpo("checkpoints", "inspect", folder).exit_code == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_no_number_is_found_at_load_too(folder, dtype):
    head = load_file(folder / "model.safetensors")["language_model.lm_head.weight"].to(dtype)
    head[3, 4] = float("nan")
    edit_weights(folder, **{"language_model.lm_head.weight": head})
    with pytest.raises(UserError, match=r"lm_head.weight holds values that are not finite"):
        OpenVLAOFTPolicy.load(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("dataset_statistics.json", '{"coffee": {"action": {"q01": [0], "q99": [1, 2]}}}'),
        ("preprocessor_config.json", '{"tvf_normalize_params": 3}'),
    ],
)
def test_a_damaged_small_file_is_a_problem_and_the_rest_is_still_told(folder, name, content):
    (folder / name).write_text(content)
    found = inspect_path(folder)
    assert len(found.problems) == 1 and name in found.problems[0] and not found.loadable
    assert "damaged" in found.companions.values() and found.num_fitting == len(found.files.specs)
    result = wmpo("checkpoints", "inspect", folder)
    assert result.exit_code == 1 and "problems" in result.stdout


def test_a_sentencepiece_model_alone_is_enough(folder):
    (folder / "tokenizer.json").unlink()
    shutil.copy(Path(__file__).parents[1] / "policies" / "sentencepiece.model", folder / "tokenizer.model")
    assert "gives id" in inspect_path(folder).problems[0], "its ids do not fit this small vocabulary"
    small_policy(text_config={**small_policy().config.text_config.to_dict(), "vocab_size": 512}).save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    found = inspect_path(folder)
    assert found.loadable and found.companions["tokenizer"] == "tokenizer.model (sentencepiece)"
    ids = OpenVLAOFTPolicy.load(folder).inputs(
        Observation.of(torch.zeros(1, 28, 28, 3, dtype=torch.uint8).numpy(), ["push"])
    )
    assert ids["input_ids"][0, 0] == 1 and ids["input_ids"].shape[1] > 10


def test_an_adapter_is_told_from_a_model(tmp_path):
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    assert "merge it" in inspect_path(tmp_path).kind


# -- pickled weights ---------------------------------------------------------------------------------------------


def test_pickled_parts_become_safetensors_that_load_to_the_same_policy(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    stale = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    pickle_weights(folder, weights | stale)
    found = inspect_path(folder)
    assert not found.missing and "convert" in found.problems[0] and not found.loadable
    command = ("checkpoints", "convert", folder, tmp_path / "out", "--layout", "transformers", "--max-shard", "100KB")
    assert wmpo(*command).exit_code == 0
    again = inspect_path(tmp_path / "out")
    assert again.loadable and len(again.files.parts) > 1 and not again.dead
    loaded = OpenVLAOFTPolicy.load(tmp_path / "out")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.statistics.q01.tolist() == small_policy().statistics.q01.tolist()


def test_a_policy_becomes_bf16_and_is_half_as_large(folder, tmp_path):
    convert_checkpoint(folder, tmp_path / "out", "transformers", dtype="bfloat16")
    assert inspect_path(tmp_path / "out").files.num_bytes * 2 == inspect_path(folder).files.num_bytes
    expected = small_policy().to(torch.bfloat16).state_dict()
    loaded = OpenVLAOFTPolicy.load(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({NORM: torch.full((32,), float("nan"))}, "not finite"),
        ({NORM: torch.ones(33)}, "wrong shape"),
        ({NORM: None}, f"lack {NORM}"),
        ({"action_head.weight": torch.ones(2)}, "in addition action_head.weight"),
    ],
)
def test_a_policy_that_would_not_load_is_not_written(folder, tmp_path, tensors, told):
    edit_weights(folder, **tensors)
    with pytest.raises(UserError, match=told):
        convert_checkpoint(folder, tmp_path / "out", "transformers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"], "nothing half-written is left"


def test_code_in_pickled_parts_is_not_run(folder, tmp_path):
    pickle_weights(folder, {**load_file(folder / "model.safetensors"), "x": Code(tmp_path / "ran")})
    for look in (
        inspect_path,
        OpenVLAOFTPolicy.load,
        lambda path: convert_checkpoint(path, tmp_path / "o", "reference"),
    ):
        with pytest.raises(UserError):
            look(folder)
    assert not (tmp_path / "ran").exists()


# -- broken and hostile ------------------------------------------------------------------------------------------


def header(entries: str, size: int = 0) -> bytes:
    return struct.pack("<Q", len(entries)) + entries.encode() + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        header(f'{{"{NORM}": {{"dtype": "F32", "shape": [{10**15}], "data_offsets": [0, {4 * 10**15}]}}}}'),
        header(f'{{"{NORM}": {{"dtype": "F32", "shape": [{10**15}], "data_offsets": [0, 8]}}}}', 8),
        header(
            f'{{"{NORM}": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, '
            f'"{NORM}": {{"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}}}',
            8,
        ),
        header("{" * 10_000),
        struct.pack("<Q", 2**60) + b"{}",
        b"",
    ],
    ids=["10^15 elements", "more elements than bytes", "a name twice", "nested", "a header of 2^60 bytes", "empty"],
)
def test_a_header_that_lies_is_refused_before_anything_is_read(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refusal(folder)


def test_a_file_that_is_cut_off_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "model.safetensors" in refusal(folder)


def test_an_index_that_does_not_agree_with_its_parts_is_refused(saved, tmp_path):
    folder = tmp_path / "sharded"
    small_policy().save_pretrained(folder, max_shard_size="100KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    assert inspect_path(folder).loadable
    unlisted = {name: part for name, part in content["weight_map"].items() if name != NORM}
    index.write_text(json.dumps({**content, "weight_map": unlisted}))
    assert "disagree" in refusal(folder)
    index.write_text(json.dumps({**content, "weight_map": {**content["weight_map"], NORM: "../model.safetensors"}}))
    assert "only a name inside" in refusal(folder)
    index.write_text(json.dumps(content))
    (folder / content["weight_map"][NORM]).unlink()
    assert "is missing" in refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config": {"num_hidden_layers": 10**9}},
        {"text_config": {"hidden_size": 10**9}},
        {"timm_overrides": {"featurizer": {"depth": 10**9}}},
        {"image_sizes": [27, 28]},
        {"attn_implementation": "someone/kernel"},
    ],
)
def test_a_config_that_claims_what_the_weights_are_not_is_a_problem_and_no_work(folder, changes):
    edit_json(folder / "config.json", **changes)
    found = inspect_path(folder)
    assert str(folder) in found.problems[0] and not found.loadable and found.facts()["fitting"] == "not compared"


def test_links_in_a_circle_and_a_folder_in_place_of_a_file_are_refused(folder):
    for name in ("config.json", "tokenizer.json"):
        (folder / name).unlink()
    (folder / "config.json").symlink_to("config.json")
    assert "config.json" in inspect_path(folder).problems[0]
    (folder / "model.safetensors").unlink()
    (folder / "model").symlink_to(".")
    assert "no weights" in refusal(folder)
    (folder / "model.safetensors").mkdir()
    assert "model.safetensors" in refusal(folder)
