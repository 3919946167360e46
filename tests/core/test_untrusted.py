"""A hostile or damaged file ends in one line that names it, before memory is taken for what it claims."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from tests.support.small_world import small_world_model
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.npz_files import load_npz
from wmpo_ray.core.untrusted import inside, parse_json, read_bytes, read_json, read_lines, tensor_specs
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig
from wmpo_ray.registry import load_policy
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import VideoMAERewardConfig
from wmpo_ray.world_models.autoencoder import AutoencoderCodec
from wmpo_ray.world_models.diffusion import DiffusionWorldModel


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


# -- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 10**6, b'{"a":' * 10**5, b"9" * 10**5])
def test_json_that_is_none_names_the_file(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    assert str(tmp_path / "a.json") in refusal(lambda: read_json(tmp_path / "a.json"))


def test_a_file_larger_than_its_bound_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    with open(path, "wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    message = refusal(lambda: read_json(path))
    assert str(2**40) in message and str(256 * 2**20) in message
    refusal(lambda: list(read_lines(path)))


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        assert "no regular file" in refusal(lambda path=path: read_bytes(path, 100))
    assert "is missing" in refusal(lambda: read_bytes(tmp_path / "none", 100))


def test_lines_come_one_at_a_time_and_none_is_endless(tmp_path):
    (tmp_path / "a").write_bytes(b"one\ntwo\n" + b"3" * 50)
    assert list(read_lines(tmp_path / "a", max_line_bytes=50)) == [b"one\n", b"two\n", b"3" * 50]
    assert "line 3" in refusal(lambda: list(read_lines(tmp_path / "a", max_line_bytes=49)))


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "..\\x", "C:\\x", "s3://bucket/x", "a\0b", "x/.."],
)
def test_a_name_never_leads_out_of_its_folder(name):
    message = refusal(lambda: inside(Path("/runs/a"), name, "/runs/a/index.json"))
    assert "/runs/a/index.json names" in message and "inside /runs/a" in message


@pytest.mark.parametrize("name", ["a", "a.safetensors", "model-00001-of-00002.safetensors", "sub/a", "..a", "ö"])
def test_a_plain_name_is_a_path_in_the_folder(name):
    assert inside(Path("/runs/a"), name, "index") == Path("/runs/a") / name


def test_the_place_of_bad_json_is_named():
    assert parse_json(b'{"a": 1}', "here") == {"a": 1}
    assert refusal(lambda: parse_json("{", "here")).startswith("here is damaged")


# -- npz ---------------------------------------------------------------------------------------------------------


def npy(header: str, data: bytes, version: bytes = b"\1\0") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def pack(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.int64).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.array("text"),
        np.array(True),
        np.zeros((0, 3), np.uint8),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_comes_back_as_numpy_reads_it(tmp_path, array, save):
    save(tmp_path / "a.npz", a=array, b=np.zeros(3))
    read = load_npz(tmp_path / "a.npz", ("a",), 4096)["a"]
    with np.load(tmp_path / "a.npz") as archive:
        expected = archive["a"]
    assert (read.dtype, read.shape) == (expected.dtype, expected.shape) and np.array_equal(read, expected)
    assert read.flags.writeable


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}", b"\0" * 8),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", b""),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([1])),
        npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}", b"\0" * 8),
        npy("{'descr': '<U1000000000', 'fortran_order': False, 'shape': ()}", b"\0" * 8),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", b"\0" * 9),
        npy("__import__('os').system('true')", b""),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", b"\0" * 8, b"\3\0"),
        npy("(" * 9000, b""),
        b"",
    ],
)
def test_an_array_that_is_not_what_it_claims_is_refused(tmp_path, content):
    path = pack(tmp_path / "a.npz", a=content)
    assert str(path) in refusal(lambda: load_npz(path, ("a",), 10**6))


def test_an_archive_that_unpacks_to_more_than_its_bound_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(2**24, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**16
    message = refusal(lambda: load_npz(tmp_path / "bomb.npz", ("a",), 2**20))
    assert "unpacks to 16777" in message and str(2**20) in message


def test_a_flipped_bit_a_cut_and_a_missing_or_doubled_array_are_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(100))
    content = bytearray(path.read_bytes())
    (tmp_path / "cut.npz").write_bytes(content[:-30])
    content[300] ^= 4
    (tmp_path / "flipped.npz").write_bytes(content)
    for name in ("cut.npz", "flipped.npz"):
        assert name in refusal(lambda name=name: load_npz(tmp_path / name, ("a",), 10**6))
    assert "0 arrays named 'b'" in refusal(lambda: load_npz(path, ("b",), 10**6))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", b"\0" * 8))
    assert "2 arrays named 'a'" in refusal(lambda: load_npz(path, ("a",), 10**6))


# -- tensors -----------------------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        safetensors({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        safetensors({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        pickle.dumps({"a": 1}),
    ],
)
def test_a_header_that_the_file_cannot_hold_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert "a.safetensors" in refusal(lambda: tensor_specs(tmp_path / "a.safetensors"))


# -- models ------------------------------------------------------------------------------------------------------


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


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_weights_that_are_not_numbers_are_named(model):
    folder, load, weights = model
    tensors = load_file(weights)
    name = min(tensors)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
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


class Bomb:
    """Says so if it is ever unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_pickled_weights_are_never_opened(model, monkeypatch, tmp_path):
    folder, load, weights = model
    monkeypatch.chdir(tmp_path)
    weights.unlink()
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
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


BILLION = 10**9


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


def test_no_source_file_unpickles():
    """`pickle.load` and object arrays are nowhere; a cloudpickle crosses processes, never a file.

    `torch.load` stands in the one place that restricts it to tensors.
    """
    root = Path(__file__).parents[2]
    forbidden = ("torch.load(", "pickle.load(", "pickle.loads(", "allow_pickle=True", "joblib", "np.load(")
    for room in ("wmpo_ray", "actors", "learners", "cluster"):
        for path in (root / room).rglob("*.py"):
            text = path.read_text().replace("cloudpickle.loads(", "")
            if path.name == "pickled_tensors.py":
                text = text.replace("torch.load(", "", 1)
            assert not [word for word in forbidden if word in text], path
