"""Frame codecs: pixels <-> the latents that the video transformer works on, frame by frame."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import Count, Positive, shown
from wmpo_ray.core.seeding import keyed_noise
from wmpo_ray.core.untrusted import (
    MAX_SETTINGS_BYTES,
    NetworkSettings,
    check_finite,
    check_network,
    read_json,
    read_settings,
    refuse_unread,
)
from wmpo_ray.world_models.decoding_memory import bounded_decode, frames_within


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
    """Latents are scaled, and neither shifted nor normalised by channel, as those of newer autoencoders are."""

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    shift_factor: Annotated[float, Field(ge=0, le=0)] | None = None
    latents_mean: None = None
    latents_std: None = None
    block_out_channels: list[Count]
    layers_per_block: Count
    latent_channels: Count
    scaling_factor: Positive

    @property
    def num_layers_in_all(self) -> int:
        return len(self.block_out_channels) * self.layers_per_block


class _TinyFileSettings(NetworkSettings):
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    shift_factor: Annotated[float, Field(ge=0, le=0)] | None = None
    num_decoder_blocks: list[Count]
    decoder_block_out_channels: list[Count]
    latent_channels: Count
    scaling_factor: Positive = 1.0

    @property
    def num_layers_in_all(self) -> int:
        return sum(self.num_decoder_blocks)


class AutoencoderCodec:
    """A diffusers `AutoencoderKL` applied to each frame (SDXL: 8x smaller, 4 channels, scale 0.13025).

    `decoder` is an `AutoencoderTiny` that decodes in its place: about a tenth of the work, slightly other pixels.
    With a `posterior_seed` latents are sampled from the posterior, as the reference does even when it imagines: the
    same noise for every frame, so that a latent depends on its frame alone. `max_decode_bytes` bounds the memory that
    decoding takes beside weights and result: fewer frames at a time, and where not even one fits, tiles of a frame,
    which change pixels near their borders.
    """

    name = "autoencoder"

    def __init__(
        self,
        autoencoder,
        frames_per_batch: int = 64,
        *,
        decoder=None,
        posterior_seed: int | None = None,
        max_decode_bytes: int | None = None,
    ):
        self.autoencoder = autoencoder
        self.decoder = decoder
        self.latent_channels = autoencoder.config.latent_channels
        self.scaling_factor = autoencoder.config.scaling_factor
        self.frames_per_batch = frames_per_batch
        self.posterior_seed = posterior_seed
        self.max_decode_bytes = max_decode_bytes

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        tiny_decoder: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **kwargs,
    ) -> AutoencoderCodec:
        """Folders in the diffusers layout. Raises UserError where there is none, or one is damaged."""
        from diffusers import AutoencoderKL, AutoencoderTiny

        autoencoder = _load(Path(path), AutoencoderKL, _FileSettings, dtype).to(device)
        decoder = None
        if tiny_decoder is not None:
            decoder = _load(Path(tiny_decoder), AutoencoderTiny, _TinyFileSettings, dtype).to(device)
        return cls(autoencoder, decoder=decoder, **kwargs)

    @torch.no_grad()
    def encode(self, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """`noise` [B, C, T, h, w] samples the posterior; without it and without a `posterior_seed` the mean is taken."""
        batch, length = frames.shape[:2]
        pixels = frames.flatten(0, 1).movedim(-1, 1).float() / 127.5 - 1
        flat = None if noise is None else noise.transpose(1, 2).flatten(0, 1)
        return self.encode_pixels(pixels, flat).unflatten(0, (batch, length)).transpose(1, 2)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """pixels [N, 3, H, W] in [-1, 1], noise [N, C, h, w] -> latents [N, C, h, w] float32."""
        parts = []
        for i, part in enumerate(pixels.split(self.frames_per_batch)):
            posterior = self.autoencoder.encode(part.to(self.autoencoder.dtype)).latent_dist
            latents = posterior.mean
            if noise is not None:
                latents = latents + posterior.std * noise[i * self.frames_per_batch :][: len(part)]
            elif self.posterior_seed is not None:
                drawn = keyed_noise([self.posterior_seed], tuple(latents.shape[1:]))
                latents = latents + posterior.std * drawn.to(latents)
            parts.append(latents.float() * self.scaling_factor)
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        batch, _, length = latents.shape[:3]
        # Truncated, as the published pipeline does. Eight bits are all that is kept of a frame once it is decoded.
        parts = [
            ((pixels * 0.5 + 0.5) * 255).clamp(0, 255).to(torch.uint8)
            for pixels in self._decoded_parts(latents.transpose(1, 2).flatten(0, 1))
        ]
        return torch.cat(parts).movedim(1, -1).unflatten(0, (batch, length))

    @torch.no_grad()
    def decode_pixels(self, latents: Tensor) -> Tensor:
        """latents [N, C, h, w] -> pixels [N, 3, H, W] float32, about [-1, 1]."""
        return torch.cat(list(self._decoded_parts(latents)))

    def _decoded_parts(self, latents: Tensor) -> Iterator[Tensor]:
        network = self.decoder or self.autoencoder
        # A tiny decoder takes latents as the video transformer has them, and its own scale is usually 1.
        flat = (latents / network.config.scaling_factor).to(network.dtype)
        count, tile = self.frames_per_batch, None
        if self.max_decode_bytes is not None:
            count, tile = frames_within(network, flat.shape[-2:], self.max_decode_bytes)
            count = min(count, self.frames_per_batch)
        for part in flat.split(count):
            yield bounded_decode(network, part, tile).float()


def _load(folder: Path, cls, settings: type[NetworkSettings], dtype: torch.dtype):
    path = folder / "config.json"
    check_network(folder, "diffusion_pytorch_model", settings, lambda content: _build(cls, content, path), _older_name)
    network = cls.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, torch_dtype=dtype
    )
    check_finite(network, folder)
    return network.eval()


def autoencoder_build(path: Path, num_tensors: int) -> Callable[[], nn.Module]:
    """What makes the `AutoencoderKL` of a config.json. Raises UserError for settings that are not read here."""
    from diffusers import AutoencoderKL

    layers = read_settings(path, _FileSettings).num_layers_in_all
    if layers > num_tensors:
        raise UserError(f"{path} has {layers} layers; the weights are {num_tensors} tensors")
    content = read_json(path, MAX_SETTINGS_BYTES)
    return lambda: _build(AutoencoderKL, content, path)


def _build(cls, settings: dict[str, Any], path: Path):
    if (said := settings.get("_class_name", cls.__name__)) != cls.__name__:
        raise UserError(f"{path}: _class_name = {shown(said)}, where the folder of an {cls.__name__} is needed")
    # An AutoencoderTiny writes block_out_channels, and never reads it.
    known = (*inspect.signature(cls.__init__).parameters, "block_out_channels", "dtype", "torch_dtype")
    refuse_unread(str(path), settings, known)
    return cls.from_config(settings)


def _older_name(name: str) -> str:
    """Published files may have the attention names of an older diffusers, which renames them itself."""
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name
