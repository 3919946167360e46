"""What a JPEG round trip does to an image, as integer arithmetic on a whole batch and on its device.

Entropy coding loses nothing, so an encoder followed by a decoder is: colour transform, 4:2:0 averaging, forward DCT,
quantisation, and back. Everything follows libjpeg-turbo to the bit: the accurate integer DCT ("islow") forward and the
fast one ("ifast") back, with triangular ("fancy") chroma upsampling, which is what TensorFlow's codec does by default.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA_QUANTA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_QUANTA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)
MIN_SIDE = 5  # below, libjpeg upsamples chroma in another way

_DCT_BITS, _PASS_BITS = 13, 2
_FAST_BITS = 8


def jpeg_round_trip(images: Tensor, quality: int = 95) -> Tensor:
    """Encode with 4:2:0 chroma and decode: [B, H, W, 3] uint8 -> the same shape.

    Raises ValueError for images below 5 pixels a side and for a quality outside [1, 100].
    """
    height, width = images.shape[1:3]
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"images of {height}x{width} pixels: a JPEG round trip needs at least {MIN_SIDE} a side")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality}: JPEG has 1 to 100")
    luma, blue, red = _to_ycc(images.int().unbind(-1))
    luma_quanta, chroma_quanta = _quanta(quality, images.device)
    luma = _requantise(_pad(luma[:, None], 8, 8), *luma_quanta)[:, 0, :height, :width]
    # The right edge is repeated before averaging and the bottom after it, as the encoder does.
    chroma = _pad(_halve(_pad(torch.stack([blue, red], 1), 2, 16)), 8, 8)
    chroma = _requantise(chroma, *chroma_quanta)[..., : (height + 1) // 2, : (width + 1) // 2]
    blue, red = _double(chroma)[..., :height, :width].unbind(1)
    return torch.stack(_to_rgb(luma, blue, red), -1).clamp(0, 255).to(torch.uint8)


# -- colours -----------------------------------------------------------------------------------------------------


def _to_ycc(rgb: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    red, green, blue = rgb
    half, centre = 1 << 15, 128 << 16
    return (
        (19595 * red + 38470 * green + 7471 * blue + half) >> 16,
        (-11059 * red - 21709 * green + 32768 * blue + centre + half - 1) >> 16,
        (32768 * red - 27439 * green - 5329 * blue + centre + half - 1) >> 16,
    )


def _to_rgb(luma: Tensor, blue: Tensor, red: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    blue, red, half = blue - 128, red - 128, 1 << 15
    return (
        luma + ((91881 * red + half) >> 16),
        luma + ((-22554 * blue - 46802 * red + half) >> 16),
        luma + ((116130 * blue + half) >> 16),
    )


def _pad(planes: Tensor, multiple_height: int, multiple_width: int) -> Tensor:
    """Repeat the last row and column of [B, C, H, W] up to multiples."""
    height, width = planes.shape[-2:]
    padding = (0, -width % multiple_width, 0, -height % multiple_height)
    # Replication exists for floating numbers only; they hold these integers exactly.
    return F.pad(planes.float(), padding, mode="replicate").int() if any(padding) else planes


def _halve(chroma: Tensor) -> Tensor:
    """Averages of 2x2 pixels, [B, C, H, W] -> [B, C, H/2, W/2]; ties go up and down by turns."""
    total = chroma.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).sum((-1, -3), dtype=torch.int32)
    bias = torch.tensor([1, 2], dtype=torch.int32, device=chroma.device).repeat(total.shape[-1] // 2)
    return (total + bias) >> 2


def _double(chroma: Tensor) -> Tensor:
    """Triangular interpolation, [B, C, H, W] -> [B, C, 2H, 2W]: nearest 9/16, its neighbours 3/16, 3/16 and 1/16."""
    above = torch.cat([chroma[..., :1, :], chroma[..., :-1, :]], -2)
    below = torch.cat([chroma[..., 1:, :], chroma[..., -1:, :]], -2)
    columns = torch.stack([3 * chroma + above, 3 * chroma + below], -2).flatten(-3, -2)
    left = torch.cat([columns[..., :1], columns[..., :-1]], -1)
    right = torch.cat([columns[..., 1:], columns[..., -1:]], -1)
    return torch.stack([(3 * columns + left + 8) >> 4, (3 * columns + right + 7) >> 4], -1).flatten(-2)


# -- frequencies -------------------------------------------------------------------------------------------------


@functools.cache
def _quanta(quality: int, device: torch.device) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """For luma and chroma: quantisation steps [8, 8], and what the fast inverse DCT multiplies with [8, 8]."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    scale = [1.0] + [math.cos(k * math.pi / 16) * math.sqrt(2) for k in range(1, 8)]
    scales = torch.tensor([[round(2**14 * a * b) for b in scale] for a in scale], dtype=torch.int32)
    tables = []
    for base in (LUMA_QUANTA, CHROMA_QUANTA):
        steps = ((torch.tensor(base, dtype=torch.int32) * percent + 50) // 100).clamp(1, 255)
        factors = (steps * scales + (1 << 11)) >> 12
        tables.append((steps.to(device), factors.to(device)))
    return tables[0], tables[1]


def _requantise(planes: Tensor, steps: Tensor, factors: Tensor) -> Tensor:
    """Samples [B, C, H, W] (H and W multiples of 8) -> samples after quantisation of their 8x8 blocks."""
    blocks = (planes - 128).unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)  # [..., 8, 8]
    blocks = _forward_dct(blocks, is_first=True)
    blocks = _forward_dct(blocks.mT, is_first=False).mT
    divisors = steps << 3
    blocks = blocks.sign() * ((blocks.abs() + (divisors >> 1)) // divisors)
    blocks = _fast_inverse_dct((blocks * factors).mT)
    blocks = (_fast_inverse_dct(blocks.mT) >> 5) + 128
    return blocks.clamp(0, 255).transpose(-3, -2).flatten(-4, -3).flatten(-2)


def _forward_dct(x: Tensor, is_first: bool) -> Tensor:
    """The accurate integer DCT (Loeffler, Ligtenberg and Moschytz) of the last axis; the two passes scale by 8."""
    x0, x1, x2, x3, x4, x5, x6, x7 = x.unbind(-1)
    shift = _DCT_BITS - _PASS_BITS if is_first else _DCT_BITS + _PASS_BITS
    outer, inner = x0 + x7 + x3 + x4, x1 + x6 + x2 + x5
    outer_difference, inner_difference = x0 + x7 - x3 - x4, x1 + x6 - x2 - x5
    if is_first:
        y0, y4 = (outer + inner) << _PASS_BITS, (outer - inner) << _PASS_BITS
    else:
        y0, y4 = _descale(outer + inner, _PASS_BITS), _descale(outer - inner, _PASS_BITS)
    z = (outer_difference + inner_difference) * 4433
    y2 = _descale(z + outer_difference * 6270, shift)
    y6 = _descale(z - inner_difference * 15137, shift)
    a, b, c, d = x3 - x4, x2 - x5, x1 - x6, x0 - x7
    z5 = (a + c + b + d) * 9633
    z1, z2 = (a + d) * -7373, (b + c) * -20995
    z3, z4 = (a + c) * -16069 + z5, (b + d) * -3196 + z5
    y7 = _descale(a * 2446 + z1 + z3, shift)
    y5 = _descale(b * 16819 + z2 + z4, shift)
    y3 = _descale(c * 25172 + z2 + z3, shift)
    y1 = _descale(d * 12299 + z1 + z4, shift)
    return torch.stack([y0, y1, y2, y3, y4, y5, y6, y7], -1)


def _descale(x: Tensor, bits: int) -> Tensor:
    return (x + (1 << (bits - 1))) >> bits


def _fast_inverse_dct(x: Tensor) -> Tensor:
    """The fast integer inverse DCT (Arai, Agui and Nakajima) of the last axis; products are cut off, not rounded."""
    x0, x1, x2, x3, x4, x5, x6, x7 = x.unbind(-1)
    even, odd = x0 + x4, x0 - x4
    total = x2 + x6
    rest = _times(x2 - x6, 362) - total
    e0, e3, e1, e2 = even + total, even - total, odd + rest, odd - rest
    z13, z10, z11, z12 = x5 + x3, x5 - x3, x1 + x7, x1 - x7
    o7 = z11 + z13
    z5 = _times(z10 + z12, 473)
    o6 = _times(z10, -669) + z5 - o7
    o5 = _times(z11 - z13, 362) - o6
    o4 = _times(z12, 277) - z5 + o5
    return torch.stack([e0 + o7, e1 + o6, e2 + o5, e3 - o4, e3 + o4, e2 - o5, e1 - o6, e0 - o7], -1)


def _times(x: Tensor, factor: int) -> Tensor:
    return (x * factor) >> _FAST_BITS
