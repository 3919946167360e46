"""The image autoencoder against the published numbers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from wmpo_ray.model_files.weight_files import find_weights, load_network
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.parity.fixture_files import compared, differing, fixture_tensors, read_config
from wmpo_ray.world_models.autoencoder import AutoencoderCodec

LATENTS, PIXELS = 1e-4, 1e-4
# Bytes are truncated: a value this near to a whole number may fall on either side of it.
NEAR_WHOLE = 0.02
TENSORS = ("x", "eps", "latent_mean", "scaled_latent", "decoded", "decoded_uint8_BTHWC")


def check(folder: Path) -> list[ParityCase]:
    """Encoding with and without the given noise, decoding, and the bytes that come of it."""
    from diffusers import AutoencoderKL

    config = read_config(folder)
    codec = AutoencoderCodec(load_network(find_weights(folder), lambda: AutoencoderKL(**config)))
    cases = []
    for path in sorted(folder.glob("encode_decode*.safetensors")):
        data = fixture_tensors(path, *TENSORS)

        def by_frame(name: str, data: dict[str, Tensor] = data) -> Tensor:
            return data[name].transpose(1, 2).flatten(0, 1)

        mean = codec.encode_pixels(by_frame("x")) / codec.scaling_factor
        sampled = codec.encode_pixels(by_frame("x"), by_frame("eps"))
        pixels = codec.decode_pixels(by_frame("scaled_latent"))
        frames = codec.decode(data["scaled_latent"])
        exact = ((data["decoded"] * 0.5 + 0.5) * 255).movedim(1, -1)
        sure = (exact - exact.round()).abs() > NEAR_WHOLE
        cases += [
            compared(path.stem, "latent_mean", mean, by_frame("latent_mean"), LATENTS),
            compared(path.stem, "scaled_latent", sampled, by_frame("scaled_latent"), LATENTS),
            compared(path.stem, "decoded", pixels, by_frame("decoded"), PIXELS),
            differing(path.stem, "decoded_uint8_BTHWC", frames[sure], data["decoded_uint8_BTHWC"][sure]),
        ]
    return cases
