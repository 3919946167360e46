"""A damaged or hostile folder of any model ends in one line that names it, before memory is taken for what it claims."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from tests.support.hostile_files import BILLION, Code, edit_json, edit_weights, npy, pack, refusal
from tests.support.small_world import small_world_model
from wmpo_ray.config.run import Config
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig
from wmpo_ray.registry import load_policy
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import VideoMAERewardConfig
from wmpo_ray.world_models.autoencoder import AutoencoderCodec
from wmpo_ray.world_models.diffusion import DiffusionWorldModel


def save_policy(folder: Path) -> None:
    TinyPolicy(TinyPolicyHFConfig(width=16, num_layers=1, num_heads=2, vocabulary=["go"])).save_pretrained(folder)


def save_reward(folder: Path) -> None:
    network = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    VideoMAERewardModel.create(VideoMAERewardConfig.model_validate({"network": network}), 16, ("go", "stay"), 0).save(
        folder
    )


def save_autoencoder(folder: Path) -> None:
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=3).save_pretrained(folder)


MODELS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object], str]] = {
    "policy": (save_policy, lambda path: load_policy(Config(), str(path)), "model"),
    "reward": (save_reward, VideoMAERewardModel.load, "model"),
    "world": (lambda path: small_world_model().save(path), DiffusionWorldModel.load, "diffusion_pytorch_model"),
    "autoencoder": (save_autoencoder, AutoencoderCodec.load, "diffusion_pytorch_model"),
}


@pytest.fixture(params=MODELS)
def model(request, tmp_path) -> tuple[Path, Callable[[Path], object], Path]:
    """A good folder, its loader, its weights."""
    save, load, stem = MODELS[request.param]
    folder = tmp_path / request.param
    save(folder)
    load(folder)
    return folder, load, folder / f"{stem}.safetensors"


def test_weights_that_are_not_numbers_are_named(model):
    folder, load, weights = model
    edit_weights(weights, lambda tensors: tensors[min(tensors)].view(-1)[0].fill_(torch.nan))
    message = refusal(lambda: load(folder))
    assert str(folder) in message and "not finite" in message


@pytest.mark.parametrize("change", ["missing", "shape", "dtype"])
def test_weights_of_another_network_are_refused_before_it_is_built(model, change):
    folder, load, weights = model
    tensors = load_file(weights)
    name = min(tensors)
    if change == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][..., :1] if change == "shape" else tensors[name].long()
    if change == "shape" and tensors[name].shape == load_file(weights)[name].shape:
        tensors[name] = torch.cat([tensors[name]] * 2)
    save_file({key: value.contiguous() for key, value in tensors.items()}, weights, metadata={"format": "pt"})
    message = refusal(lambda: load(folder))
    assert str(folder) in message and "config.json asks for" in message


@pytest.mark.parametrize("key", ["quantization_config", "auto_map", "attn_implementation", "_attn_implementation"])
def test_a_folder_that_would_fetch_or_import_something_is_refused(model, key):
    folder, load, _ = model
    edit_json(folder / "config.json", **{key: {"AutoModel": "evil/code"}})
    assert f"the key '{key}' is not allowed" in refusal(lambda: load(folder))


def test_a_folder_that_names_another_model_is_refused(model):
    folder, load, _ = model
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../other"}')
    assert "adapter_config.json" in refusal(lambda: load(folder))


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"a": ' * 10**5])
def test_a_config_that_is_none_is_named(model, text):
    folder, load, _ = model
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refusal(lambda: load(folder))


def test_pickled_weights_are_never_opened(model, tmp_path):
    folder, load, weights = model
    weights.unlink()
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Code(tmp_path / "unpickled")))
    assert weights.name in refusal(lambda: load(folder))
    index = folder / f"{weights.name}.index.json"
    for part, expected in (
        ("pytorch_model.bin", "only safetensors files are loaded"),
        ("../other.safetensors", "only a name inside"),
        ("/etc/x.safetensors", "only a name inside"),
        ("gone.safetensors", "is missing"),
    ):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": part}}))
        assert expected in refusal(lambda: load(folder))
    assert not (tmp_path / "unpickled").exists()


def test_a_folder_that_is_none_is_named(model, tmp_path):
    _, load, _ = model
    assert str(tmp_path / "none") in refusal(lambda: load(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("policy", {"width": BILLION}),
        ("policy", {"width": 0}),
        ("policy", {"num_layers": BILLION}),
        ("policy", {"num_bins": BILLION}),
        ("policy", {"num_bases": BILLION}),
        ("policy", {"max_words": BILLION}),
        ("policy", {"patch_size": 0}),
        ("policy", {"frame_size": BILLION}),
        ("policy", {"vocabulary": 3}),
        ("policy", {"image_std": 0}),
        ("policy", {"image_mean": [1]}),
        ("policy", {"dtype": "int8"}),
        ("reward", {"hidden_size": BILLION}),
        ("reward", {"num_hidden_layers": BILLION}),
        ("reward", {"image_size": BILLION}),
        ("reward", {"num_frames": BILLION}),
        ("reward", {"patch_size": 0}),
        ("reward", {"num_labels": BILLION}),
        ("reward", {"num_labels": 1}),
        ("reward", {"hidden_act": "evil"}),
        ("reward", {"num_channels": 3}),
        ("world", {"hidden_size": BILLION}),
        ("world", {"depth": BILLION}),
        ("world", {"num_heads": 0}),
        ("world", {"num_heads": -2}),
        ("world", {"patch_size": [1, 0, 4]}),
        ("world", {"patch_size": [BILLION] * 3}),
        ("world", {"input_sq_size": 0}),
        ("world", {"conditioning_timestep": "now"}),
        ("autoencoder", {"layers_per_block": BILLION}),
        ("autoencoder", {"block_out_channels": [BILLION]}),
        ("autoencoder", {"down_block_types": ["os.system"]}),
        ("autoencoder", {"scaling_factor": 0}),
        ("autoencoder", {"in_channels": 4}),
        ("autoencoder", {"shift_factor": 0.1}),
        ("autoencoder", {"latents_mean": [0.1, 0.2, 0.3]}),
        ("autoencoder", {"latents_std": [1, 2, 3]}),
        ("autoencoder", {"_class_name": "AutoencoderTiny"}),
        ("autoencoder", {"surprise": 1}),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_they_are_allocated(tmp_path, name, settings):
    save, load, _ = MODELS[name]
    save(tmp_path)
    edit_json(tmp_path / "config.json", **settings)
    assert str(tmp_path) in refusal(lambda: load(tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        ("world", "world_model.json", {"codec": "../../x"}),
        ("world", "world_model.json", {"codec": "/etc"}),
        ("world", "world_model.json", {"codec": "s3://x"}),
        ("world", "world_model.json", {"codec": "gone"}),
        ("world", "world_model.json", {"context_frames": BILLION}),
        ("world", "world_model.json", {"chunk_length": BILLION}),
        ("world", "world_model.json", {"chunk_length": 0}),
        ("world", "world_model.json", {"frame_size": [0, 0]}),
        ("world", "world_model.json", {"surprise": 1}),
        ("world", "world_model.json", {"sampler": {"num_steps": "many"}}),
        ("world", "world_model.json", {"denoiser": {"action_bands": BILLION}}),
        ("reward", "reward_model.json", {"threshold": "high"}),
        ("reward", "reward_model.json", {"image_std": 0}),
        ("reward", "reward_model.json", {"instructions": ["go"]}),
        ("reward", "reward_model.json", {"network": 1}),
    ],
)
def test_settings_that_lead_out_of_the_folder_or_make_no_sense_are_named(tmp_path, name, file, settings):
    save, load, _ = MODELS[name]
    save(tmp_path)
    edit_json(tmp_path / file, **settings)
    message = refusal(lambda: load(tmp_path))
    assert str(tmp_path) in message


def test_a_good_folder_leaves_the_random_numbers_alone(model):
    folder, load, _ = model
    torch.manual_seed(3)
    load(folder)
    after = torch.rand(1)
    torch.manual_seed(3)
    load(folder)
    assert torch.equal(after, torch.rand(1))


def test_a_refusal_takes_no_memory(tmp_path):
    """In a process that may have no more than it has after its imports, and a little."""
    save_policy(tmp_path / "policy")
    edit_json(tmp_path / "policy" / "config.json", width=2**20, num_heads=2)
    pack(tmp_path / "a.npz", a=npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2000000000,)}", b"\0" * 8))
    script = """
import resource, sys
from pathlib import Path
from wmpo_ray.core.errors import UserError
from wmpo_ray.policies.tiny import TinyPolicy
from wmpo_ray.core.npz_files import load_npz
folder = Path(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
for load in (lambda: TinyPolicy.load(folder / "policy"), lambda: load_npz(folder / "a.npz", ("a",), 2**40)):
    try:
        load()
    except UserError as error:
        print("refused", error)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.count("refused") == 2, result.stderr
