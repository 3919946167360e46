"""The network computes what the released one computes, and keeps its files."""

import pytest
import torch
from safetensors.torch import load_file

from tests.support.golden import max_difference, published_network, tensors
from wmpo_ray.world_models.stdit import STDiT

FORWARD_TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def network() -> STDiT:
    return published_network()


def inputs(data):
    size = float(data["input.height"][0]), float(data["input.width"][0])
    return (data["x"], data["timestep"], data["y"], data["x_mask"], *size)


@pytest.mark.parametrize("name", ["forward_a", "forward_b", "forward_c"])
@torch.no_grad()
def test_forward_equals_the_published_output_on_all_frames(network, name):
    """a: the rollout's layout; b: not square; c: fewer conditioning frames than frames without action."""
    data = tensors(name)
    assert max_difference(network(*inputs(data)), data["output"]) <= FORWARD_TOLERANCE


@torch.no_grad()
def test_every_part_equals_the_published_intermediate_output(network):
    data, seen, hooks = tensors("forward_a"), {}, []
    parts = ["x_embedder", "action_embedder", "final_layer"]
    parts += [f"{kind}_blocks.{i}" for kind in ("spatial", "temporal") for i in (0, 1)]
    for part in parts:

        def keep(module, args, output, part=part):
            seen[part] = output[0] if isinstance(output, tuple) else output

        hooks.append(network.get_submodule(part).register_forward_hook(keep))
    network(*inputs(data))
    for hook in hooks:
        hook.remove()
    for part in parts:
        expected = data[f"act.{part}"]
        # Inside the network values grow beyond 1; the bound grows with them.
        bound = FORWARD_TOLERANCE * max(1.0, float(expected.abs().max()))
        assert max_difference(seen[part].reshape(expected.shape), expected) <= bound, part


@torch.no_grad()
def test_the_unused_action_row_matters_only_with_few_conditioning_frames(network):
    changed = published_network()
    changed.action_embedder.none_action.weight.add_(1.0)
    for name, matters in (("forward_a", False), ("forward_b", False), ("forward_c", True)):
        data = tensors(name)
        assert torch.equal(changed(*inputs(data)), network(*inputs(data))) is not matters, name


@torch.no_grad()
def test_save_and_load_keep_every_bit_and_every_published_key(network, tmp_path):
    network.save_pretrained(tmp_path, safe_serialization=True)
    written = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    published = tensors("model")
    assert written.keys() == published.keys()
    assert all(torch.equal(written[key], published[key]) for key in published)
    loaded = STDiT.from_pretrained(tmp_path, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    assert dict(loaded.config)["keep_unused_parameters"] and loaded.config.hidden_size == network.config.hidden_size
    data = tensors("forward_a")
    assert torch.equal(loaded.eval()(*inputs(data)), network(*inputs(data)))


def test_without_the_unused_parameters_nothing_else_is_missing(network):
    lean = STDiT(**{**network.config, "keep_unused_parameters": False})
    result = lean.load_state_dict(tensors("model"), strict=False)
    assert not result.missing_keys
    unused = ("y_embedder.", "fps_embedder.")
    assert all(key.startswith(unused) or ".cross_attn." in key for key in result.unexpected_keys)
    data = tensors("forward_a")
    with torch.no_grad():
        assert torch.equal(lean.eval()(*inputs(data)), network(*inputs(data)))


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="hidden_size=30, num_heads=4"):
        STDiT(hidden_size=30, num_heads=4, depth=1)
