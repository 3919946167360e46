"""The conditioning cache is exact: conditioning frames know nothing of the step, the noise or the actions."""

import pytest
import torch

from wmpo_ray.world_models.stdit import STDiT

SIZES = {
    "published": {"hidden_size": 48, "depth": 2, "num_heads": 3},
    "embedded": {
        "hidden_size": 32,
        "depth": 3,
        "num_heads": 4,
        "mlp_ratio": 3.0,
        "patch_size": (1, 4, 4),
        "in_channels": 3,
        "action_dim": 5,
        "qk_norm": False,
        "pred_sigma": False,
        "input_sq_size": 16,
        "mlp_activation": "silu",
        "gate": "one_plus",
        "per_block_modulation": True,
        "conditioning_timestep": 70.0,
    },
    "one_plus": {"hidden_size": 24, "depth": 1, "num_heads": 1, "gate": "one_plus"},
    "silu": {"hidden_size": 24, "depth": 1, "num_heads": 2, "mlp_activation": "silu", "qk_norm": False},
    "per_block_modulation": {"hidden_size": 24, "depth": 2, "num_heads": 2, "per_block_modulation": True},
}
FRAMES = [(2, 4), (4, 8), (1, 3)]  # conditioning and denoised


def case(size: str, context_frames: int, chunk_length: int, pixels: tuple[int, int] = (8, 8)):
    torch.manual_seed(0)
    network = STDiT(**SIZES[size], pad_action_num=context_frames).eval()
    x = torch.randn(2, network.config.in_channels, context_frames + chunk_length, *pixels)
    actions = torch.rand(2, chunk_length, network.config.action_dim) * 2 - 1
    mask = (torch.arange(x.shape[2])[None] >= context_frames).expand(2, -1)
    return network, x, torch.tensor([1000.0, 333.0]), actions, mask


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frames", FRAMES)
@torch.no_grad()
def test_cached_equals_uncached_on_predicted_frames(size, frames):
    network, x, timestep, actions, mask = case(size, *frames)
    c = frames[0]
    whole = network(x, timestep, actions, mask)[:, :, c:]
    cached = network.forward_cached(x[:, :, c:], timestep, actions, network.encode_conditioning(x[:, :, :c]))
    assert (cached - whole).abs().max() <= 1e-5
    # The cache matters: with another one the result differs.
    other = network.encode_conditioning(x[:, :, :c].flip(0))
    assert (network.forward_cached(x[:, :, c:], timestep, actions, other) - whole).abs().max() > 1e-3


@torch.no_grad()
def test_cached_equals_uncached_on_a_frame_that_is_not_square():
    network, x, timestep, actions, mask = case("published", 4, 8, (4, 12))
    size = 128.0, 384.0
    whole = network(x, timestep, actions, mask, *size)[:, :, 4:]
    cache = network.encode_conditioning(x[:, :, :4], *size)
    assert (network.forward_cached(x[:, :, 4:], timestep, actions, cache, *size) - whole).abs().max() <= 1e-5


@torch.no_grad()
def test_fewer_conditioning_frames_than_frames_without_action():
    """Then `none_action` reaches denoised frames, in both paths alike."""
    torch.manual_seed(0)
    network = STDiT(**SIZES["published"], pad_action_num=3).eval()
    x, actions = torch.randn(2, 4, 6, 8, 8), torch.rand(2, 3, 7)
    mask = (torch.arange(6)[None] >= 1).expand(2, -1)
    timestep = torch.tensor([700.0, 20.0])
    cached = network.forward_cached(x[:, :, 1:], timestep, actions, network.encode_conditioning(x[:, :, :1]))
    assert (cached - network(x, timestep, actions, mask)[:, :, 1:]).abs().max() <= 1e-5


@pytest.mark.parametrize("size", ["published", "embedded"])
@torch.no_grad()
def test_conditioning_activations_are_the_same_bits_under_any_noise_action_and_time(size):
    network, x, timestep, actions, mask = case(size, 4, 8)
    seen: list[torch.Tensor] = []
    for block in [*network.spatial_blocks, *network.temporal_blocks]:
        block.register_forward_hook(lambda module, args, output: seen.append(output[0].clone()))
    network(x, timestep, actions, mask)
    count = len(seen)
    other = torch.cat([x[:, :, :4], torch.randn_like(x[:, :, 4:])], 2)
    network(other, timestep.flip(0), -actions, mask)
    for first, second in zip(seen[:count], seen[count:], strict=True):
        assert torch.equal(first[:, :4], second[:, :4])
        assert not torch.equal(first[:, 4:], second[:, 4:])


@pytest.mark.parametrize("size", ["published", "embedded"])
@torch.no_grad()
def test_a_later_frame_never_changes_an_earlier_one(size):
    network, x, timestep, actions, mask = case(size, 2, 4)
    before = network(x, timestep, actions, mask)
    for changed in range(6):
        later = x.clone()
        later[:, :, changed] += 1.0
        after = network(later, timestep, actions, mask)
        assert (after - before)[:, :, :changed].abs().sum() == 0
        assert all((after - before)[:, :, i].abs().max() > 1e-4 for i in range(changed, 6))


@torch.no_grad()
def test_an_action_changes_its_own_frame_and_later_ones_only():
    network, x, timestep, actions, mask = case("embedded", 2, 4)
    before = network(x, timestep, actions, mask)
    for changed in range(4):
        other = actions.clone()
        other[:, changed] *= -1
        difference = (network(x, timestep, other, mask) - before).abs().amax((0, 1, 3, 4))
        assert difference[: 2 + changed].sum() == 0 and difference[2 + changed] > 1e-4
