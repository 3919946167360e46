"""Folders of OpenVLA-OFT: what is read, what is written, what is refused."""

from __future__ import annotations

import json
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.documents import ROOT
from tests.support.openvla import PROCESSOR, small_config, small_policy
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.types import Observation
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
from wmpo_ray.registry import load_policy

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
TEXTS = ["push the block", "pull the block slowly"]
# As OpenVLA's own class writes it.
PUBLISHED_PROCESSOR = {
    "auto_map": {"AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor"},
    "image_processor_type": "PrismaticImageProcessor",
    "image_resize_strategy": "resize-naive",
    "interpolations": ["bicubic", "bicubic"],
    "means": [entry["mean"] for entry in PROCESSOR["tvf_normalize_params"]],
    "stds": [entry["std"] for entry in PROCESSOR["tvf_normalize_params"]],
    "processor_class": "PrismaticProcessor",
    "tvf_crop_params": [{"output_size": [28, 28]}] * 2,
    "tvf_do_letterbox": False,
    "tvf_letterbox_fill": None,
    "tvf_resize_params": [{"antialias": True, "interpolation": 3, "max_size": None, "size": [28, 28]}] * 2,
    "use_fused_vision_backbone": True,
    **PROCESSOR,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    small_policy().save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def published(folder: Path) -> Config:
    """The config of a run that begins with the policy in `folder`."""
    openvla = {"image_steps": "resize", "compute_dtype": "float32"}
    return Config.model_validate(
        {
            "policy": {"kind": "openvla_oft", "pretrained": str(folder), "openvla": openvla},
            "rollout": {"chunk_length": 2},
        }
    )


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        load()
    return str(caught.value)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def act(policy) -> tuple[torch.Tensor, torch.Tensor]:
    chunk = policy.act(Observation.of(FRAMES, TEXTS), 1.0, [1, 2])
    return chunk.record["tokens"], chunk.logprobs


def assert_same_weights(one, other) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# -- what is read ------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(folder):
    policy, loaded = small_policy(), load_policy(published(folder), str(folder))
    assert not list(folder.glob("*.bin")), "weights are safetensors, never pickles"
    assert_same_weights(policy, loaded)
    assert all(torch.equal(x, y) for x, y in zip(act(policy), act(loaded), strict=True))
    assert torch.equal(loaded.statistics.q99, policy.statistics.q99)
    loaded.save_pretrained(folder / "again")
    assert sorted(p.name for p in (folder / "again").iterdir()) == sorted(
        p.name for p in folder.iterdir() if p.is_file()
    )


def test_transformers_reads_the_same_folder(folder):
    theirs = OpenVLAOFTPolicy.from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()
    ours = OpenVLAOFTPolicy.load(folder).eval()
    assert_same_weights(theirs, ours)
    inputs = ours.inputs(Observation.of(FRAMES, TEXTS))
    assert torch.equal(theirs(**inputs), ours(**inputs))


def test_shards_are_read_by_their_index_however_many_there_are(folder):
    policy = small_policy()
    for size in ("100KB", "30KB"):
        sharded = folder.parent / size
        policy.save_pretrained(sharded, max_shard_size=size)
        assert len(list(sharded.glob("model-*.safetensors"))) > 1
        assert_same_weights(OpenVLAOFTPolicy.load(sharded), policy)


def test_weights_are_converted_on_their_way(folder):
    loaded = OpenVLAOFTPolicy.load(folder, dtype=torch.bfloat16)
    expected = small_policy().to(torch.bfloat16)
    assert_same_weights(loaded, expected)
    loaded.save_pretrained(folder / "half")
    assert OpenVLAOFTPolicy.load(folder / "half").dtype == torch.bfloat16


def test_the_image_processor_of_the_folder_counts(folder):
    loaded = OpenVLAOFTPolicy.load(folder)
    pixels = loaded.inputs(Observation.of(np.full((1, 28, 28, 3), 255, np.uint8), TEXTS[:1]))["pixel_values"]
    expected = [(1 - 0.25) / 0.5, (1 - 0.5) / 0.25, (1 - 0.75) / 0.125, 1, 1, 1]
    torch.testing.assert_close(pixels[0, :, 3, 3], torch.tensor(expected))
    (folder / "preprocessor_config.json").unlink()
    pixels = OpenVLAOFTPolicy.load(folder).inputs(Observation.of(np.full((1, 28, 28, 3), 255, np.uint8), TEXTS[:1]))[
        "pixel_values"
    ]
    torch.testing.assert_close(pixels[0, 0, 3, 3], torch.tensor((1 - 0.485) / 0.229))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("processor_config.json", {"processor_class": "PrismaticProcessor", "image_processor": PROCESSOR}),
        ("preprocessor_config.json", PUBLISHED_PROCESSOR),
        ("preprocessor_config.json", {**PUBLISHED_PROCESSOR, "tvf_normalize_params": None}),
    ],
)
def test_the_image_processor_is_read_in_every_version_of_its_file(folder, name, content):
    expected = OpenVLAOFTPolicy.load(folder).inputs(Observation.of(FRAMES, TEXTS))["pixel_values"]
    (folder / "preprocessor_config.json").unlink()
    (folder / name).write_text(json.dumps(content))
    loaded = OpenVLAOFTPolicy.load(folder)
    assert torch.equal(loaded.inputs(Observation.of(FRAMES, TEXTS))["pixel_values"], expected)
    loaded.save_pretrained(folder / "again")
    assert torch.equal(
        OpenVLAOFTPolicy.load(folder / "again").inputs(Observation.of(FRAMES, TEXTS))["pixel_values"], expected
    )


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 10000.0},
        {"rope_theta": 10000.0, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_theta": 10000.0},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 10000.0}},
        {},
    ],
)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_keys_of_older_and_newer_transformers_mean_the_same(folder, rope, key):
    expected = act(OpenVLAOFTPolicy.load(folder, torch.bfloat16))
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["rope_parameters"], config["dtype"]
    config["text_config"] |= rope
    (folder / "config.json").write_text(json.dumps({**config, key: "bfloat16"}))
    loaded = OpenVLAOFTPolicy.load(folder)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(x, y) for x, y in zip(act(loaded), expected, strict=True))


def test_a_prefix_of_all_weights_is_taken_off(folder):
    save_file(
        {f"module.{name}": t for name, t in load_file(folder / "model.safetensors").items()},
        folder / "model.safetensors",
    )
    assert_same_weights(OpenVLAOFTPolicy.load(folder), small_policy())


def test_the_statistics_file_counts_and_its_data_set_can_be_chosen(folder):
    assert OpenVLAOFTPolicy.load(folder, unnorm_key="square").statistics.q01.tolist() == [0, 0, 0]
    assert "set unnorm_key" in refusal(lambda: OpenVLAOFTPolicy.load(folder, unnorm_key=None).statistics)
    (folder / "dataset_statistics.json").unlink()
    assert "no action statistics" in refusal(lambda: OpenVLAOFTPolicy.load(folder).statistics)


def test_a_published_config_with_remote_code_loads_and_the_code_is_dropped(folder):
    edit_json(folder / "config.json", auto_map={"AutoConfig": "evil.Code"}, norm_stats={}, arch_specifier="no-align")
    policy = OpenVLAOFTPolicy.load(folder)
    policy.save_pretrained(folder / "again")
    written = json.loads((folder / "again" / "config.json").read_text())
    assert "auto_map" not in written and written["arch_specifier"] == "no-align"


def test_loading_leaves_the_random_numbers_alone(folder):
    torch.manual_seed(3)
    OpenVLAOFTPolicy.load(folder)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))


# -- what is refused ---------------------------------------------------------------------------------------------

BILLION = 10**9


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


NORM = "language_model.model.norm.weight"


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
    edit_weights(folder, change)
    said = refusal(lambda: OpenVLAOFTPolicy.load(folder))
    assert str(folder) in said and message in said


def test_stored_rotary_frequencies_are_no_foreign_weights(folder):
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert_same_weights(OpenVLAOFTPolicy.load(folder), small_policy())


def test_a_value_that_does_not_fit_the_dtype_is_refused(folder):
    edit_weights(folder, lambda tensors: tensors[NORM].fill_(1e30))
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


class Bomb:
    """Says so if it is ever unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_pickled_weights_are_never_opened(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
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


# -- memory ------------------------------------------------------------------------------------------------------


LOAD = """
import gc
import sys
from pathlib import Path

from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy


def process_bytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


OpenVLAOFTPolicy.load(Path(sys.argv[1]))  # imports what it needs
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = process_bytes("VmRSS")
policy = OpenVLAOFTPolicy.load(Path(sys.argv[1]))
print(sum(p.numel() * p.element_size() for p in policy.parameters()), process_bytes("VmHWM") - before)
"""


def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
    text = {"vocab_size": 8064, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 5}
    with torch.device("meta"):
        shapes = OpenVLAOFTPolicy(small_config(text_config={**text, "num_attention_heads": 8})).to(torch.bfloat16)
    config = shapes.config
    config.dtype = torch.bfloat16
    config.save_pretrained(tmp_path)
    weights = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in shapes.state_dict().items()}
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    # In a process of its own: this one has memory to spare, which would be used again.
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    size, grown = map(int, done.stdout.split())
    assert size > 1.4e8 and 0.9 < grown / size <= 1.3
