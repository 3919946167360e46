"""Frames as the published VideoMAE classifier sees them: resized, cropped and normalised, on the frames' device."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import Positive

PREPROCESSOR_FILE = "preprocessor_config.json"
BILINEAR = 2  # PIL's number for it
MAX_SIDE = 2**14
FIXED_POINT = 2.0**22  # PIL resizes with weights of 22 binary digits
FRAMES_PER_BATCH = 256  # of 256x256: 400 MB in float64
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class FramePreprocessing(BaseModel):
    """Shortest edge to `resize` (PIL's bilinear filter), centre crop of `crop`, times `rescale`, normalised."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    resize: Side = 224
    crop: Side = 224
    rescale: Positive = 1 / 255
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)

    def __call__(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """frames [N, H, W, 3] uint8 -> [N, 3, crop, crop] in `dtype`.

        The resized frame has the very bytes that PIL makes on a CPU. Raises UserError for frames that are smaller
        than the crop once they are resized.
        """
        parts = [self._part(part).to(dtype) for part in frames.split(FRAMES_PER_BATCH)]
        return torch.cat(parts)

    def _part(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[1:3]
        short, long = min(height, width), max(height, width)
        new_long = int(self.resize * long / short)
        size = (self.resize, new_long) if height <= width else (new_long, self.resize)
        if min(size) < self.crop:
            raise UserError(
                f"crop = {self.crop} is more than the {min(size)} pixels of the resized frame's shorter side"
            )
        resized = resize_like_pil(frames.movedim(-1, 1), size)
        top, left = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
        cropped = resized[..., top : top + self.crop, left : left + self.crop]
        mean, std = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (self.mean, self.std))
        return ((cropped.double() * self.rescale).float() - mean) / std

    def to_file(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json`."""
        return {
            "image_processor_type": "VideoMAEImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.resize},
            "resample": BILINEAR,
            "do_center_crop": True,
            "crop_size": {"height": self.crop, "width": self.crop},
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def resize_like_pil(images: Tensor, size: tuple[int, int]) -> Tensor:
    """images [..., H, W] uint8 -> [..., *size] uint8: PIL's antialiased bilinear filter, bit for bit.

    PIL resizes along the width first, rounds to bytes, then along the height, with fixed-point weights (from version 13
    on in the other order where that is less work; the published scores are older). Products and sums of its integers
    are exact in float64, whatever their order, so any device gives the same bytes.
    """
    height, width = images.shape[-2:]
    x = images
    if width != size[1]:
        x = _fixed_point(x.double() @ _filter(width, size[1]).to(x.device).T)
    if height != size[0]:
        x = _fixed_point(_filter(height, size[0]).to(x.device) @ x.double())
    return x


def _fixed_point(sums: Tensor) -> Tensor:
    return ((sums + FIXED_POINT / 2) / FIXED_POINT).floor().clamp(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=16)
def _filter(old: int, new: int) -> Tensor:
    """PIL's weights [new, old] for one axis, integers in float64: a triangle as wide as the scale, at least 1."""
    if max(old, new) > MAX_SIDE:
        raise UserError(f"{max(old, new)} pixels: frames have at most {MAX_SIDE} a side")
    scale = old / new
    support = max(scale, 1.0)
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) * scale
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), old)
        row = [max(0.0, 1.0 - abs((j - centre + 0.5) / support)) for j in range(low, high)]
        total = sum(row)
        weights[i, low:high] = torch.tensor(
            [math.floor(w / total * FIXED_POINT + 0.5) for w in row], dtype=torch.float64
        )
    return weights
