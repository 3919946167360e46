"""How much memory decoding a frame takes, and decoding within a bound."""

from __future__ import annotations

import torch
from torch import Tensor

from wmpo_ray.core.errors import UserError

# The widest full-size layers hold their input, its norm and the activation at once; a convolution may copy two of them
# into a layout of its own.
LIVE_ACTIVATIONS = 5
MIN_TILE = 8  # latents along a side; the tiles of less would be all border


def decode_bytes(network, height: int, width: int) -> int:
    """Estimated bytes beside the weights while one frame of height x width latents is decoded."""
    channels = _decoder_channels(network)
    scale = 2 ** (len(channels) - 1)
    # The second widest level reaches the full size too, through its upsampler.
    widest = max(channels[:2])
    return LIVE_ACTIVATIONS * widest * height * width * scale**2 * network.dtype.itemsize


def frames_within(network, size: tuple[int, int] | torch.Size, max_bytes: int) -> tuple[int, int | None]:
    """How many frames of `size` (height, width) in latents are decoded at a time in `max_bytes`, and the side of tiles.

    The side in latents is None where whole frames fit. Raises UserError if not even a small tile fits.
    """
    height, width = size
    count = max_bytes // decode_bytes(network, height, width)
    if count:
        return count, None
    side = int((max_bytes / decode_bytes(network, 1, 1)) ** 0.5)
    if side < MIN_TILE:
        raise UserError(
            f"max_decode_bytes = {max_bytes}: a tile of {MIN_TILE}x{MIN_TILE} latents needs "
            f"{decode_bytes(network, MIN_TILE, MIN_TILE)}; raise it"
        )
    return 1, side // 4 * 4  # a quarter of a tile overlaps the next


def bounded_decode(network, latents: Tensor, tile: int | None) -> Tensor:
    """latents [N, C, h, w] -> pixels [N, 3, H, W]; in overlapping tiles of `tile` latents a side if it is given."""
    if tile is None:
        return network.decode(latents).sample
    before = network.tile_latent_min_size, network.tile_sample_min_size
    network.use_tiling = True
    network.tile_latent_min_size = tile
    network.tile_sample_min_size = tile * 2 ** (len(_decoder_channels(network)) - 1)
    try:
        return network.decode(latents).sample
    finally:
        network.use_tiling = False
        network.tile_latent_min_size, network.tile_sample_min_size = before


def _decoder_channels(network) -> list[int]:
    """Channels of the decoder's levels, the one of full size first."""
    config = network.config
    if "block_out_channels" in config and "up_block_types" in config:
        return list(config.block_out_channels)
    return list(reversed(config.decoder_block_out_channels))
