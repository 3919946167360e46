"""From frames to what the vision towers see: JPEG, Lanczos resize, centre crop, normalisation; a batch at a time.

The published policies were trained and rolled out on images that a JPEG codec and TensorFlow's image operations had
touched; this is the same arithmetic in torch, on the device of the frames.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.policies.openvla.jpeg import jpeg_round_trip

JPEG_QUALITY = 95
WEIGHT_BITS, PASS_BITS = 26, 16  # of the fractions in a resize: 26 + 16 + 10 bits are fewer than float64's 53
CROP_AREA = 0.9  # training crops at random to this share of the area, inference at the centre

DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

ImageSteps = Literal["rollout", "no_jpeg", "simulator", "resize"]
STEPS: dict[str, tuple[str, ...]] = {
    "rollout": ("jpeg", "resize", "crop"),  # the reference's imagined rollouts and its training data
    "no_jpeg": ("resize", "crop"),
    "simulator": ("crop",),  # the reference's evaluation in a simulator crops straight to the target size
    "resize": ("resize",),  # for policies trained without random crops
}


class ImageProcessor:
    """Frames [B, H, W, 3] uint8 -> pixel values [B, 3 towers, h, w] float32, towers one after the other.

    `size` is (h, w); `means` and `stds` hold three values for each tower.
    """

    def __init__(
        self,
        size: tuple[int, int],
        means: Sequence[Sequence[float]] = (DINO_MEAN, SIGLIP_MEAN),
        stds: Sequence[Sequence[float]] = (DINO_STD, SIGLIP_STD),
        steps: ImageSteps = "rollout",
    ):
        self.size, self.steps = size, steps
        self.means, self.stds = torch.tensor(means, dtype=torch.float32), torch.tensor(stds, dtype=torch.float32)

    def __call__(self, frames: Tensor) -> Tensor:
        return self.normalize(self.prepare(frames))

    def prepare(self, frames: Tensor) -> Tensor:
        """The 8-bit images [B, h, w, 3] after every step but normalisation."""
        steps = STEPS[self.steps]
        if "jpeg" in steps:
            frames = jpeg_round_trip(frames, JPEG_QUALITY)
        if "resize" in steps:
            frames = lanczos_resize(frames, self.size)
        if "crop" in steps:
            frames = centre_crop(frames, self.size)
        return frames

    def normalize(self, images: Tensor) -> Tensor:
        """Images [B, h, w, 3] uint8 -> [B, 3 towers, h, w] float32."""
        # A GPU multiplies by the inverse of a plain number instead of dividing by it.
        pixels = images.permute(0, 3, 1, 2)[:, None].float() / torch.full((), 255.0, device=images.device)
        means, stds = (x.to(images.device)[:, :, None, None] for x in (self.means, self.stds))
        return ((pixels - means) / stds).flatten(1, 2)


# -- resizing ----------------------------------------------------------------------------------------------------


def lanczos_resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased Lanczos3: [B, H, W, 3] uint8 -> [B, *size, 3] uint8.

    Weights and the values between the two passes are fixed-point numbers. Their products and sums are exact in float64,
    whatever their order, so any device gives the same bytes. An image that has the size already is returned as it is.
    """
    if tuple(images.shape[1:3]) == tuple(size):
        return images
    rows, columns = (_lanczos_matrix(images.shape[1 + i], size[i], images.device) for i in (0, 1))
    resized = torch.einsum("yh,bhwc->bywc", rows, images.double())
    resized = (resized * 2**PASS_BITS).round() / 2**PASS_BITS
    resized = torch.einsum("xw,bywc->byxc", columns, resized)
    return resized.round().clamp(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=16)
def _lanczos_matrix(num_in: int, num_out: int, device: torch.device) -> Tensor:
    """Weights [num_out, num_in], multiples of 2^-WEIGHT_BITS in float64.

    Pixels are areas, and the kernel widens where the image shrinks.
    """
    ratio = num_in / num_out
    width = max(ratio, 1.0)
    weights = torch.zeros(num_out, num_in, dtype=torch.float64)
    for i in range(num_out):
        centre = (i + 0.5) * ratio
        low, high = max(math.floor(centre - 3 * width), 0), min(math.ceil(centre + 3 * width), num_in)
        row = [_lanczos((j + 0.5 - centre) / width) for j in range(low, high)]
        total = math.fsum(row)
        weights[i, low:high] = torch.tensor([round(w / total * 2**WEIGHT_BITS) for w in row], dtype=torch.float64)
    return (weights / 2**WEIGHT_BITS).to(device)


def _lanczos(x: float) -> float:
    if x == 0 or abs(x) >= 3:
        return float(x == 0)
    return 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2


def centre_crop(images: Tensor, size: tuple[int, int], area: float = CROP_AREA) -> Tensor:
    """The centred crop with this share of the area, bilinear with aligned corners: [B, H, W, 3] -> [B, *size, 3] uint8.

    The last bit decides where a value is cut off to 8 bits, so the order of the float32 operations is TensorFlow's.
    """
    (top, bottom, y), (left, right, x) = (_crop_axis(images.shape[1 + i], size[i], area, images.device) for i in (0, 1))
    pixels = images.float() * (1 / 255)
    upper, lower = pixels[:, top], pixels[:, bottom]
    x, y = x[:, None], y[:, None, None]
    upper = upper[:, :, left] + (upper[:, :, right] - upper[:, :, left]) * x
    lower = lower[:, :, left] + (lower[:, :, right] - lower[:, :, left]) * x
    cropped = (upper + (lower - upper) * y).clamp(0, 1)
    return (cropped * 255.5).to(torch.uint8)


@functools.lru_cache(maxsize=16)
def _crop_axis(num_in: int, num_out: int, area: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each output pixel the two input pixels that it lies between, and its distance from the first."""
    places = torch.from_numpy(_crop_places(num_in, num_out, area))
    first = places.floor()
    last = places.ceil().clamp_max(num_in - 1)
    return first.long().to(device), last.long().to(device), (places - first).to(device)


def _crop_places(num_in: int, num_out: int, area: float) -> np.ndarray:
    """Where in the input each output pixel lies [num_out] float32; every step is rounded to float32."""
    one, two, steps = np.float32(1), np.float32(2), np.float32(num_out - 1)
    side = np.float32(math.sqrt(np.float32(area)))
    start = (one - side) / two
    end = start + side
    far = np.float32(num_in - 1)
    if num_out > 1:
        return start * far + np.arange(num_out, dtype=np.float32) * ((end - start) * far / steps)
    return np.array([(start + end) / two * far])
