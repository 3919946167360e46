"""Frame codecs: pixels and back."""

import pytest
import torch
from diffusers import AutoencoderKL

from wmpo_ray.world_models.autoencoder import AutoencoderCodec, PixelCodec


def test_pixels_survive_the_round_trip():
    every_value = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(2, 3, -1, -1, 3)
    codec = PixelCodec()
    latents = codec.encode(every_value)
    assert latents.shape == (2, 3, 3, 16, 16)
    assert torch.equal(codec.decode(latents), every_value)
    assert torch.equal(codec.decode(latents * 1e3)[0, 0, 0, 0], torch.zeros(3, dtype=torch.uint8))


def test_the_background_is_zero():
    frames = torch.tensor([40, 44, 52], dtype=torch.uint8).expand(1, 1, 4, 4, 3)
    assert PixelCodec().encode(frames).abs().max() == 0


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = 3
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_autoencoder_samples_its_posterior(autoencoder, frames):
    codec = AutoencoderCodec(autoencoder, frames_per_batch=4)
    noise = torch.randn(2, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    mean, sampled = codec.encode(frames), codec.encode(frames, noise)
    assert mean.shape == sampled.shape == noise.shape
    # One frame alone, by the formula (mean + std e) * 0.13025.
    for b, t in ((0, 0), (1, 2)):
        pixels = frames[b, t].movedim(-1, 0)[None].float() / 127.5 - 1
        posterior = autoencoder.encode(pixels).latent_dist
        std = (posterior.logvar / 2).exp()
        assert torch.allclose(mean[b, :, t], posterior.mean[0] * 0.13025, atol=1e-5)
        assert torch.allclose(sampled[b, :, t], (posterior.mean + std * noise[b, :, t])[0] * 0.13025, atol=1e-5)


@torch.no_grad()
def test_autoencoder_decodes_each_frame_and_truncates(autoencoder, frames):
    codec = AutoencoderCodec(autoencoder, frames_per_batch=4)
    latents = codec.encode(frames)
    decoded = codec.decode(latents)
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
    pixels = autoencoder.decode(latents[1, :, 2][None] / 0.13025).sample[0]
    exact = ((pixels * 0.5 + 0.5) * 255).clamp(0, 255).movedim(0, -1)
    distance = exact - decoded[1, 2].float()
    assert distance.min() > -1e-3 and distance.max() < 1 + 1e-3


def test_the_number_of_frames_per_batch_does_not_matter(autoencoder, frames):
    one, all_ = (AutoencoderCodec(autoencoder, n).encode(frames) for n in (1, 64))
    assert torch.allclose(one, all_, atol=1e-5)


def test_loads_from_a_folder(autoencoder, frames, tmp_path):
    autoencoder.save_pretrained(tmp_path, safe_serialization=True)
    codec = AutoencoderCodec.load(tmp_path)
    assert codec.latent_channels == 4 and codec.scaling_factor == 0.13025
    assert torch.equal(codec.encode(frames), AutoencoderCodec(autoencoder).encode(frames))
