"""Weights in the loss for pixels of colours that an environment names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wmpo_ray.environments.layout import PixelWeight
from wmpo_ray.world_models.autoencoder import PixelCodec


class ColourWeights:
    """For a codec whose latents are pixels."""

    def __init__(self, weights: Sequence[PixelWeight], codec: PixelCodec):
        self._weights, self._codec = tuple(weights), codec

    def extra(self, future: Tensor, last: Tensor, changed: Tensor) -> Tensor:
        """What is added to the weight of each pixel of future [B, 3, K, H, W], [B, 1, K, H, W].

        last [B, 3, 1, H, W]: the conditioning frame before; changed: where the two differ, bool like the result.
        """
        total = torch.zeros_like(future[:, :1])
        for each in self._weights:
            seen = self._has_colour(future, each) | self._has_colour(last, each)
            total = total + seen * (each.weight + each.changed_weight * changed)
        return total

    def _has_colour(self, latents: Tensor, weight: PixelWeight) -> Tensor:
        pixels = latents * self._codec.scale + self._codec.centre.to(latents.device)
        red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:3]
        matches = torch.ones_like(red, dtype=torch.bool)
        for r, g, b, least in weight.colour:
            matches = matches & (r * red + g * green + b * blue > least)
        return matches
