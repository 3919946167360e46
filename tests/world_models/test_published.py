"""The reference's checkpoint folders: whatever the layout, the same network; and back to the same names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from tests.support.golden import GOLDEN, max_difference, published_network, tensors
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.observations import StartState
from wmpo_ray.model_files.weight_files import find_weights
from wmpo_ray.world_models.attention import choose_backend
from wmpo_ray.world_models.autoencoder import AutoencoderCodec
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.published_stdit import (
    load_published_network,
    published_sizes,
    published_world_model,
    save_published_network,
)
from wmpo_ray.world_models.stdit import STDiT, is_dead

WEIGHTS = GOLDEN / "model.safetensors"


def forward(network: STDiT, name: str = "forward_b") -> torch.Tensor:
    data = tensors(name)
    size = float(data["input.height"][0]), float(data["input.width"][0])
    with torch.no_grad():
        return network(data["x"], data["timestep"], data["y"], data["x_mask"], *size)


def options(network: STDiT) -> dict:
    return {name: value for name, value in network.config.items() if not name.startswith("_")}


def write_pickled_shards(folder: Path) -> None:
    names = sorted(tensors("model"))
    halves = {"pytorch_model-00001.bin": names[::2], "pytorch_model-00002.bin": names[1::2]}
    for part, held in halves.items():
        torch.save({name: tensors("model")[name] for name in held}, folder / part)
    weight_map = {name: part for part, held in halves.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def arrange(layout: str, folder: Path) -> Path:
    """The published weights in one of the layouts that are met; returns the path to load."""
    folder.mkdir()
    if layout == "one file":
        return Path(shutil.copy(WEIGHTS, folder / "weights.safetensors"))
    if layout == "ema.pt":
        torch.save(tensors("model"), folder / "ema.pt")
    elif layout == "wrapped .pth":
        torch.save({"step": 7, "state_dict": tensors("model")}, folder / "model.pth")
    elif layout == "raw, pickled parts":
        (folder / "model").mkdir()
        write_pickled_shards(folder / "model")
    elif layout == "safetensors parts":
        save_published_network(published_network(), folder, max_shard_size="400KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    elif layout == "diffusers":
        published_network().save_pretrained(folder)
    return folder


LAYOUTS = ["one file", "ema.pt", "wrapped .pth", "raw, pickled parts", "safetensors parts", "diffusers"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(layout, tmp_path):
    network = load_published_network(arrange(layout, tmp_path / "checkpoint"))
    assert not any(is_dead(name) for name in network.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors("model")[name]), name
    assert not network.training
    assert max_difference(forward(network), tensors("forward_b")["output"]) <= 5e-6


def test_averaged_weights_come_before_raw_ones_unless_raw_ones_are_asked_for(tmp_path):
    averaged = {name: tensor + 1 for name, tensor in tensors("model").items()}
    torch.save(averaged, tmp_path / "ema.pt")
    shutil.copy(WEIGHTS, tmp_path / "model.safetensors")
    bias = tensors("model")["x_embedder.proj.bias"]
    assert torch.equal(load_published_network(tmp_path).x_embedder.proj.bias, bias + 1)
    assert torch.equal(load_published_network(tmp_path, ema=False).x_embedder.proj.bias, bias)


def test_sizes_are_read_from_the_shapes_and_checked_against_the_config(tmp_path):
    config = json.loads((GOLDEN / "config.json").read_text())
    shutil.copy(WEIGHTS, tmp_path / "model.safetensors")
    told_by_weights = published_sizes(find_weights(tmp_path))
    assert {name: config[name] for name in told_by_weights} == {
        name: list(size) if isinstance(size, tuple) else size for name, size in told_by_weights.items()
    }
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_action_num": 3, "input_sq_size": 128}))
    network = load_published_network(tmp_path)
    assert network.config.pad_action_num == 3 and network.config.input_sq_size == 128
    for wrong in ({"depth": 3}, {"num_heads": 6}, {"patch_size": [1, 1, 4]}, {"gate": "one_plus"}):
        (tmp_path / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(UserError, match=next(iter(wrong))):
            load_published_network(tmp_path)


def test_a_setting_that_nothing_reads_is_refused_by_name_and_one_of_training_is_not(tmp_path):
    config = json.loads((GOLDEN / "config.json").read_text())
    shutil.copy(WEIGHTS, tmp_path / "model.safetensors")
    of_training = {
        "enable_flash_attn": True,
        "class_dropout_prob": 0.1,
        "model_type": "STDiT3",
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config | of_training | {"unknown": None, "other": False}))
    load_published_network(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scale": 2}))
    with pytest.raises(UserError, match="rope_scale = 2 is not read here"):
        load_published_network(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "scheduler_config.json").write_text('{"shift": 3.0}')
    with pytest.raises(UserError, match=r"scheduler_config.json is not read.*world_model.sampler"):
        load_published_network(tmp_path)


@pytest.mark.parametrize("drop_dead", [False, True])
def test_what_is_written_back_has_the_published_names_and_bits(tmp_path, drop_dead):
    network = load_published_network(GOLDEN, drop_dead=drop_dead)
    save_published_network(network, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: t.shape for name, t in written.items()} == {name: t.shape for name, t in tensors("model").items()}
    for name, tensor in tensors("model").items():
        expected = torch.zeros_like(tensor) if drop_dead and is_dead(name) else tensor
        assert torch.equal(written[name], expected), name
    again = load_published_network(tmp_path / "out")
    assert torch.equal(forward(again), forward(network))
    assert options(again) == options(load_published_network(GOLDEN))


def test_dead_parameters_can_be_left_out_of_the_file(tmp_path):
    save_published_network(load_published_network(GOLDEN), tmp_path / "out", dead_parameters=False)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(written) == {name for name in tensors("model") if not is_dead(name)}


def test_options_that_the_reference_does_not_have_are_not_written_in_its_layout(tmp_path):
    network = STDiT(hidden_size=24, depth=1, num_heads=2, mlp_activation="silu")
    with pytest.raises(UserError, match="mlp_activation = 'silu'"):
        save_published_network(network, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_mlp_of_any_width_is_read_from_its_shape(tmp_path):
    for hidden in range(40, 80):
        network = STDiT(hidden_size=24, depth=1, num_heads=2, mlp_ratio=(hidden + 0.5) / 24)
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        assert load_published_network(tmp_path).spatial_blocks[0].mlp.fc1.weight.shape == (hidden, 24)


def test_bf16_halves_the_bytes_and_stays_near_the_published_bf16_output():
    network = load_published_network(GOLDEN, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.bfloat16}
    data = tensors("forward_b")
    assert max_difference(forward(network), data["output_bf16_model"]) <= 0.3
    assert not torch.equal(forward(network), data["output"])


def test_attention_backends_agree_and_the_choice_is_told():
    network = load_published_network(GOLDEN)
    assert network.choose_attention("auto") == "sdpa"
    fused = forward(network, "forward_a")
    assert network.choose_attention("plain") == "plain"
    assert {block.attn.backend for block in network.temporal_blocks} == {"plain"}
    assert max_difference(forward(network, "forward_a"), fused) <= 5e-6
    with pytest.raises(ConfigError, match="needs bf16 or fp16 on a GPU"):
        network.choose_attention("flash")
    with pytest.raises(ConfigError, match="known are auto, flash, sdpa and plain"):
        choose_backend("xformers", torch.device("cpu"), torch.float32)  # type: ignore[arg-type]


def test_compiled_blocks_are_whole_graphs_and_compute_the_same():
    """Traced and run as they are: code generation for a CPU takes minutes and says nothing about ours."""
    network = load_published_network(GOLDEN)
    plain = forward(network)
    network.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert max_difference(forward(network), plain) <= 1e-6


def small_autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


def small_tiny_decoder() -> AutoencoderTiny:
    torch.manual_seed(1)
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()


@pytest.mark.parametrize(("options", "tiny"), [({}, False), ({"posterior_seed": 3, "max_decode_bytes": 10**6}, True)])
def test_a_published_world_model_imagines_the_same_from_our_own_folder(tmp_path, options, tiny):
    network = load_published_network(GOLDEN)
    decoder = small_tiny_decoder() if tiny else None
    codec = AutoencoderCodec(small_autoencoder(), decoder=decoder, **options)
    model = published_world_model(network, codec, frame_size=(16, 16), num_steps=2)
    model.save(tmp_path / "ours")
    again = DiffusionWorldModel.load(tmp_path / "ours")
    frame = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    actions = torch.rand(1, 8, network.config.action_dim, generator=torch.Generator().manual_seed(2)) * 2 - 1
    starts = [StartState(frame.numpy(), "go", 0)]
    frames = [m.step_chunk(m.start(starts)[0], actions, [5])[1].frames for m in (model, again)]
    assert frames[0].shape == (1, 8, 16, 16, 3) and frames[0].dtype == np.uint8
    assert np.array_equal(frames[0], frames[1])
    assert model.context_frames == network.config.pad_action_num


def test_weights_of_something_else_are_named(tmp_path):
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no STDiT world model"):
        load_published_network(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_published_network(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="known are"):
        STDiT.from_preset("XXL/2")
