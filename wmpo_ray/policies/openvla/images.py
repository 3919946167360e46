"""From frames to what the vision towers see: JPEG, Lanczos resize, centre crop, normalisation; a batch at a time.

The published policies were trained and rolled out on images that a JPEG codec and TensorFlow's image operations had
touched; this is the same arithmetic in torch, on the device of the frames.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from wmpo_ray.policies.openvla.jpeg import jpeg_round_trip

JPEG_QUALITY = 95
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
        pixels = images.permute(0, 3, 1, 2)[:, None].float() / 255
        means, stds = (x.to(images.device)[:, :, None, None] for x in (self.means, self.stds))
        return ((pixels - means) / stds).flatten(1, 2)


# -- resizing ----------------------------------------------------------------------------------------------------


def lanczos_resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased Lanczos3, computed in float32 and rounded once: [B, H, W, 3] uint8 -> [B, *size, 3] uint8.

    An image that has the size already is returned as it is.
    """
    if tuple(images.shape[1:3]) == tuple(size):
        return images
    rows, columns = (_lanczos_matrix(images.shape[1 + i], size[i], images.device) for i in (0, 1))
    resized = torch.einsum("yh,bhwc->bywc", rows, images.float())
    resized = torch.einsum("xw,bywc->byxc", columns, resized)
    return resized.round().clamp(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=16)
def _lanczos_matrix(num_in: int, num_out: int, device: torch.device) -> Tensor:
    """Weights [num_out, num_in] float32; pixels are areas, and the kernel widens where the image shrinks."""
    ratio = num_in / num_out
    width = max(ratio, 1.0)
    centres = (torch.arange(num_out, dtype=torch.float64) + 0.5) * ratio
    distance = (torch.arange(num_in, dtype=torch.float64) + 0.5 - centres[:, None]) / width
    weights = torch.sinc(distance) * torch.sinc(distance / 3) * (distance.abs() < 3)
    return (weights / weights.sum(1, keepdim=True)).float().to(device)


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
    side = torch.tensor(area).sqrt()
    start = (1 - side) / 2
    end = start + side
    if num_out > 1:
        places = start * (num_in - 1) + torch.arange(num_out).float() * ((end - start) * (num_in - 1) / (num_out - 1))
    else:
        places = (0.5 * (start + end) * (num_in - 1))[None]
    first = places.floor()
    last = places.ceil().clamp_max(num_in - 1)
    return first.long().to(device), last.long().to(device), (places - first).to(device)
