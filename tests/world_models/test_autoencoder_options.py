"""Seeded posterior, tiny decoder, decoding under a memory bound."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from wmpo_ray.core.errors import UserError
from wmpo_ray.world_models.autoencoder import AutoencoderCodec
from wmpo_ray.world_models.decoding_memory import decode_bytes, frames_within


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).eval()


@pytest.fixture(scope="module")
def tiny() -> AutoencoderTiny:
    torch.manual_seed(1)
    channels, blocks = (8, 8, 8, 8), (1, 1, 1, 1)
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    ).eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_seeded_posterior_is_a_function_of_frame_and_seed(autoencoder, frames):
    codec = AutoencoderCodec(autoencoder, frames_per_batch=2, posterior_seed=5)
    latents = codec.encode(frames)
    assert torch.equal(latents, codec.encode(frames))
    assert torch.allclose(latents[1:, :, 2:], codec.encode(frames[1:, 2:]), atol=1e-6), "not of its place in a batch"
    repeated = codec.encode(frames[:1, :1].expand(1, 3, -1, -1, -1))
    assert torch.allclose(repeated[:, :, 0], repeated[:, :, 2], atol=1e-6)
    for other in (AutoencoderCodec(autoencoder), AutoencoderCodec(autoencoder, posterior_seed=6)):
        assert not torch.allclose(latents, other.encode(frames), atol=1e-3)


@torch.no_grad()
def test_a_tiny_decoder_takes_the_latents_as_they_are(autoencoder, tiny, frames):
    codec = AutoencoderCodec(autoencoder, decoder=tiny)
    latents = codec.encode(frames)
    assert torch.equal(latents, AutoencoderCodec(autoencoder).encode(frames)), "encoding is the autoencoder's"
    pixels = tiny.decode(latents.transpose(1, 2).flatten(0, 1)).sample
    expected = ((pixels * 0.5 + 0.5) * 255).clamp(0, 255).to(torch.uint8)
    assert torch.equal(codec.decode(latents).flatten(0, 1).movedim(-1, 1), expected)


def test_fewer_frames_at_a_time_change_nothing(autoencoder, frames):
    latents = AutoencoderCodec(autoencoder).encode(frames).transpose(1, 2).flatten(0, 1)
    bound = 2 * decode_bytes(autoencoder, 8, 6)
    assert frames_within(autoencoder, (8, 6), bound) == (2, None)
    bounded = AutoencoderCodec(autoencoder, max_decode_bytes=bound)
    assert torch.allclose(
        bounded.decode_pixels(latents), AutoencoderCodec(autoencoder).decode_pixels(latents), atol=1e-5
    )


@pytest.mark.parametrize("kind", ["autoencoder", "tiny"])
def test_tiles_cover_the_frame_and_agree_away_from_their_borders(kind, autoencoder, tiny, request):
    network = request.getfixturevalue(kind)
    latents = torch.randn(2, 4, 20, 20, generator=torch.Generator().manual_seed(3))
    whole = AutoencoderCodec(autoencoder, decoder=tiny if kind == "tiny" else None)
    bound = decode_bytes(network, 16, 16)
    count, tile = frames_within(network, (20, 20), bound)
    assert count == 1 and tile == 16
    tiled = AutoencoderCodec(autoencoder, decoder=whole.decoder, max_decode_bytes=bound)
    a, b = whole.decode_pixels(latents), tiled.decode_pixels(latents)
    assert a.shape == b.shape
    # Norms over a tile are not those over the frame, so the autoencoder's tiles agree roughly only.
    corner = (a - b)[..., :64, :64].abs().mean() / a.std()
    assert corner < (0.3 if kind == "autoencoder" else 1e-3)
    assert not network.use_tiling, "the next, smaller frame is decoded whole"


@torch.no_grad()
def test_decoding_stays_under_its_estimate(autoencoder):
    """Live memory by the allocator's own events."""
    latents = torch.randn(1, 4, 12, 10)
    autoencoder.decode(latents)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        autoencoder.decode(latents)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = torch.tensor([event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]).cumsum(0)
    estimate = decode_bytes(autoencoder, 12, 10)
    assert 0.3 * estimate < int(live.max()) <= estimate


def test_a_bound_for_which_even_a_tile_is_too_much_names_itself(autoencoder):
    with pytest.raises(UserError, match="max_decode_bytes = 1000"):
        AutoencoderCodec(autoencoder, max_decode_bytes=1000).decode(torch.zeros(1, 4, 1, 16, 16))


def test_bf16_and_a_tiny_decoder_are_loaded_from_folders(autoencoder, tiny, frames, tmp_path):
    autoencoder.save_pretrained(tmp_path / "vae", safe_serialization=True)
    tiny.save_pretrained(tmp_path / "tiny", safe_serialization=True)
    codec = AutoencoderCodec.load(tmp_path / "vae", tiny_decoder=tmp_path / "tiny", dtype=torch.bfloat16)
    assert codec.autoencoder.dtype == codec.decoder.dtype == torch.bfloat16
    latents = codec.encode(frames)
    assert latents.dtype == torch.float32
    assert torch.allclose(latents, AutoencoderCodec(autoencoder).encode(frames), atol=0.02)
    assert codec.decode(latents).shape == frames.shape
    tensors = load_file(tmp_path / "tiny" / "diffusion_pytorch_model.safetensors")
    tensors["decoder.layers.0.weight"][0] = float("nan")
    save_file(tensors, tmp_path / "tiny" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"decoder.layers.0.weight.*not finite"):
        AutoencoderCodec.load(tmp_path / "vae", tiny_decoder=tmp_path / "tiny")


def test_names_of_an_older_diffusers_are_read(autoencoder, frames, tmp_path):
    autoencoder.save_pretrained(tmp_path, safe_serialization=True)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for new, old in older.items():
        tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for name, t in tensors.items()}
    assert any(".query." in name for name in tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    assert torch.equal(AutoencoderCodec.load(tmp_path).encode(frames), AutoencoderCodec(autoencoder).encode(frames))
