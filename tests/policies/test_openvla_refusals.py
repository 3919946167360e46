"""Folders of OpenVLA-OFT that are refused: each with one line that names the file, before memory is taken."""

from __future__ import annotations

import json
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch

from tests.support.hostile_files import BILLION, Code, edit_weights, refusal
from tests.support.openvla import PROCESSOR, small_policy
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy

NORM = "language_model.model.norm.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    small_policy().save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.mark.parametrize(
    "settings",
    [
        {"text_config": {"vocab_size": BILLION}},
        {"text_config": {"hidden_size": 0}},
        {"text_config": {"num_hidden_layers": BILLION}},
        {"text_config": {"num_attention_heads": 5}},
        {"text_config": {"hidden_act": "evil"}},
        {"text_config": {"rope_parameters": {"rope_type": "yarn"}}},
        {"text_config": {"model_type": "mistral"}},
        {"text_config": {"rope_theta": 5000.0}},
        {"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}},
        {"text_config": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}},
        {"text_config": {"head_dim": 16}},
        {"text_config": {"attention_dropout": 0.1}},
        {"text_config": {"eos_token_id": 3}},
        {"dtype": "float32", "torch_dtype": "bfloat16"},
        {"dtype": "float8_e4m3fn"},
        {"text_config": 3},
        {"timm_overrides": {"featurizer": {"depth": BILLION}}},
        {"timm_overrides": {"featurizer": {"embed_dim": BILLION}}},
        {"timm_overrides": {"featurizer": {"num_heads": 0}}},
        {"timm_overrides": {"featurizer": {"evil": 1}}},
        {"timm_overrides": {"third": {}}},
        {"timm_model_ids": ["vit_unknown", "vit_unknown"]},
        {"image_sizes": [BILLION, 28]},
        {"image_sizes": [27, 28]},
        {"image_resize_strategy": "letterbox"},
        {"use_fused_vision_backbone": False},
        {"n_action_bins": 336},
        {"num_actions_chunk": BILLION},
        {"action_dim": 0},
        {"image_steps": "blur"},
        {"compute_dtype": "int8"},
        {"quantization_config": {"bits": 4}},
        {"_attn_implementation": "someone/kernel"},
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_allocated(folder, settings):
    config = json.loads((folder / "config.json").read_text())
    for key, value in settings.items():
        is_part = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = {**config[key], **value} if is_part else value
    (folder / "config.json").write_text(json.dumps(config))
    assert str(folder) in refusal(lambda: OpenVLAOFTPolicy.load(folder))


def test_keys_of_the_language_model_that_would_fetch_something_are_dropped(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(auto_map={"AutoModel": "evil.Code"}, attn_implementation="someone/kernel")
    (folder / "config.json").write_text(json.dumps(config))
    loaded = OpenVLAOFTPolicy.load(folder)
    assert not hasattr(loaded.config.text_config, "auto_map")
    assert loaded.language_model.config._attn_implementation == "wmpo_bidirectional"


def test_changes_that_do_not_fit_name_the_setting(folder):
    with pytest.raises(ConfigError, match="image_steps"):
        OpenVLAOFTPolicy.load(folder, image_steps="blur")
    with pytest.raises(ConfigError, match="learning_rate is no setting"):
        OpenVLAOFTPolicy.load(folder, learning_rate=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors[NORM].fill_(torch.nan), "not finite"),
        (lambda tensors: tensors.pop(NORM), NORM),
        (lambda tensors: tensors.update({NORM: torch.ones(33)}), NORM),
        (lambda tensors: tensors.update({NORM: torch.ones(32, dtype=torch.int64)}), NORM),
        (lambda tensors: tensors.update({"action_head.weight": torch.ones(2)}), "action_head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, message):
    edit_weights(folder / "model.safetensors", change)
    said = refusal(lambda: OpenVLAOFTPolicy.load(folder))
    assert str(folder) in said and message in said


def test_a_value_that_does_not_fit_the_dtype_is_refused(folder):
    edit_weights(folder / "model.safetensors", lambda tensors: tensors[NORM].fill_(1e30))
    assert "not finite in torch.float16" in refusal(lambda: OpenVLAOFTPolicy.load(folder, dtype=torch.float16))


def test_index_and_shards_must_agree(folder):
    sharded = folder.parent / "sharded"
    small_policy().save_pretrained(sharded, max_shard_size="100KB")
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    files = sorted(set(content["weight_map"].values()))

    def refusal_with(**places: str) -> str:
        index.write_text(json.dumps({**content, "weight_map": {**content["weight_map"], **places}}))
        return refusal(lambda: OpenVLAOFTPolicy.load(sharded))

    other = next(file for file in files if file != content["weight_map"][NORM])
    assert "disagree" in refusal_with(**{NORM: other})
    assert "is missing" in refusal_with(**{NORM: "model-00009-of-00009.safetensors"})
    assert "only a name inside" in refusal_with(**{NORM: "../model.safetensors"})
    assert "only safetensors" in refusal_with(**{NORM: "pytorch_model.bin"})
    index.write_text(json.dumps(content))
    (sharded / files[0]).write_bytes((sharded / files[0]).read_bytes()[:-8])
    assert files[0] in refusal(lambda: OpenVLAOFTPolicy.load(sharded))
    (sharded / files[0]).unlink()
    assert f"{files[0]} is missing" in refusal(lambda: OpenVLAOFTPolicy.load(sharded))


def test_pickled_weights_are_never_opened(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Code(tmp_path / "unpickled")))
    assert "model.safetensors" in refusal(lambda: OpenVLAOFTPolicy.load(folder))
    assert not (tmp_path / "unpickled").exists()


def test_a_header_that_claims_more_than_the_file_holds_is_refused(folder):
    header = json.dumps({NORM: {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "model.safetensors" in refusal(lambda: OpenVLAOFTPolicy.load(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json is damaged"),
        ("tokenizer.json", '{"model": 3}', "tokenizer.json is damaged"),
        ("dataset_statistics.json", "[", "dataset_statistics.json is damaged"),
        ("preprocessor_config.json", "{", "preprocessor_config.json is damaged"),
        ("preprocessor_config.json", '{"tvf_normalize_params": [1]}', "tvf_normalize_params"),
        ("preprocessor_config.json", json.dumps({**PROCESSOR, "input_sizes": [[3, 1, 1]] * 2}), "input_sizes"),
        (
            "preprocessor_config.json",
            json.dumps({"tvf_normalize_params": [{"mean": [0, 0, 0], "std": [1, 0, 1]}] * 2}),
            "must be positive",
        ),
        ("preprocessor_config.json", json.dumps({"tvf_do_letterbox": True}), "letterbox"),
        ("preprocessor_config.json", json.dumps({"image_resize_strategy": "letterbox"}), "image_resize_strategy"),
        ("preprocessor_config.json", json.dumps({"do_flip": True}), "do_flip = .* is not read here"),
        ("preprocessor_config.json", json.dumps({"tvf_crop_params": [{"output_size": [9, 9]}] * 2}), "tvf_crop_params"),
        ("preprocessor_config.json", json.dumps({"tvf_resize_params": [{"size": 9}] * 2}), "tvf_resize_params"),
        (
            "processor_config.json",
            json.dumps({"image_processor": {"means": 3}}),
            "processor_config.json, image_processor",
        ),
        ("processor_config.json", json.dumps({"image_processor": {}}), "differ; keep the one"),
        (
            "dataset_statistics.json",
            '{"coffee": {"action": {"q01": [2, 0, 0], "q99": [1, 1, 1]}}}',
            "q01 = 2 above q99 = 1",
        ),
    ],
)
def test_damaged_companions_are_named(folder, name, content, message):
    (folder / name).write_text(content)
    assert re.search(message, refusal(lambda: OpenVLAOFTPolicy.load(folder).statistics))


def test_statistics_that_contradict_themselves_are_refused_before_they_are_used(folder):
    (folder / "dataset_statistics.json").write_text('{"coffee": {"action": {"q01": [2], "q99": [1]}}}')
    assert "q01 = 2 above q99 = 1" in refusal(lambda: OpenVLAOFTPolicy.load(folder))


def test_a_folder_that_is_none_is_named(tmp_path):
    assert str(tmp_path / "none") in refusal(lambda: OpenVLAOFTPolicy.load(tmp_path / "none"))
