"""Folders of OpenVLA-OFT: what is read and what is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.documents import ROOT
from tests.support.hostile_files import edit_json, edit_weights, refusal
from tests.support.openvla import PROCESSOR, small_config, small_policy
from wmpo_ray.config.run import Config
from wmpo_ray.core.observations import Observation
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


def act(policy) -> tuple[torch.Tensor, torch.Tensor]:
    chunk = policy.act(Observation.of(FRAMES, TEXTS), 1.0, [1, 2])
    return chunk.record["tokens"], chunk.logprobs


def assert_same_weights(one, other) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


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


def test_stored_rotary_frequencies_are_no_foreign_weights(folder):
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder / "model.safetensors", lambda tensors: tensors.update({name: torch.ones(4)}))
    assert_same_weights(OpenVLAOFTPolicy.load(folder), small_policy())


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
