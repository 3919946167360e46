"""Frame codecs: pixels <-> the latents that the video transformer works on, frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from wmpo_ray.config_section import Count, Positive
from wmpo_ray.untrusted import NetworkSettings, check_finite, check_network


class FrameCodec(Protocol):
    """Maps frames [B, T, H, W, 3] uint8 to latents [B, C, T, h, w] float32 and back."""

    name: str  # "pixel", or "autoencoder" for one with weights
    latent_channels: int

    def encode(self, frames: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class PixelCodec:
    """Identity: a latent is a pixel, centred on the background so that an empty scene is zero."""

    name = "pixel"
    latent_channels = 3

    def __init__(self, centre: tuple[float, float, float] = (40.0, 44.0, 52.0), scale: float = 64.0):
        self.centre = torch.tensor(centre).view(3, 1, 1, 1)
        self.scale = scale

    def encode(self, frames: Tensor) -> Tensor:
        return (frames.movedim(-1, 1).float() - self.centre.to(frames.device)) / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        pixels = latents.float() * self.scale + self.centre.to(latents.device)
        return pixels.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)


class _FileSettings(NetworkSettings):
    block_out_channels: list[Count]
    layers_per_block: Count
    latent_channels: Count
    scaling_factor: Positive

    @property
    def num_layers_in_all(self) -> int:
        return len(self.block_out_channels) * self.layers_per_block


class AutoencoderCodec:
    """A diffusers `AutoencoderKL` applied to each frame (SDXL: 8x smaller, 4 channels, scale 0.13025)."""

    name = "autoencoder"

    def __init__(self, autoencoder, frames_per_batch: int = 64):
        self.autoencoder = autoencoder
        self.latent_channels = autoencoder.config.latent_channels
        self.scaling_factor = autoencoder.config.scaling_factor
        self.frames_per_batch = frames_per_batch

    @classmethod
    def load(cls, path: str | Path, **kwargs) -> AutoencoderCodec:
        """A folder in the diffusers layout. Raises UserError where it is none, or is damaged."""
        from diffusers import AutoencoderKL

        folder = Path(path)
        check_network(folder, "diffusion_pytorch_model", _FileSettings, AutoencoderKL.from_config)
        autoencoder = AutoencoderKL.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        check_finite(autoencoder, folder)
        return cls(autoencoder.eval(), **kwargs)

    @torch.no_grad()
    def encode(self, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """`noise` [B, C, T, h, w] samples the posterior; without it the mean is taken."""
        batch, length = frames.shape[:2]
        pixels = frames.flatten(0, 1).movedim(-1, 1).float() / 127.5 - 1
        parts = []
        for i, part in enumerate(pixels.split(self.frames_per_batch)):
            posterior = self.autoencoder.encode(part).latent_dist
            latents = posterior.mean
            if noise is not None:
                flat = noise.transpose(1, 2).flatten(0, 1)[i * self.frames_per_batch :][: len(part)]
                latents = latents + posterior.std * flat
            parts.append(latents * self.scaling_factor)
        return torch.cat(parts).unflatten(0, (batch, length)).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        batch, _, length = latents.shape[:3]
        flat = latents.transpose(1, 2).flatten(0, 1) / self.scaling_factor
        pixels = torch.cat([self.autoencoder.decode(part).sample for part in flat.split(self.frames_per_batch)])
        # Truncated, as the published pipeline does.
        pixels = ((pixels * 0.5 + 0.5) * 255).clamp(0, 255).to(torch.uint8)
        return pixels.movedim(1, -1).unflatten(0, (batch, length))
