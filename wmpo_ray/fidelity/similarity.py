"""How alike two frames are: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.rollout.fidelity import psnr_of, squared_error

WINDOW, SIGMA = 11, 1.5  # pixels of the Gaussian window
K1, K2 = 0.01, 0.03
MAX_PIXELS = 2**22  # computed at a time


def psnr(real: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio [...] in dB of frames [..., H, W, 3] uint8.

    That of equal frames would be infinite; errors below that of `MIN_SQUARED_ERROR` count as it, which is 61.1 dB.
    """
    return psnr_of(squared_error(real, shown))


def ssim(real: np.ndarray, shown: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """Mean structural similarity [N] of frames [N, H, W, 3] uint8, 1 where they are equal.

    Wang, Bovik, Sheikh and Simoncelli, Image Quality Assessment, IEEE TIP 13 (2004), 600-612, Eq. 13, with a Gaussian
    window of 11x11 pixels wherever it lies inside the frame, the mean of the three colours. Smaller frames have a smaller
    window, of an odd number of pixels.
    """
    step = max(1, MAX_PIXELS // max(1, int(np.prod(real.shape[1:3]))))
    parts = [
        _ssim(_planes(real[i : i + step], device), _planes(shown[i : i + step], device))
        for i in range(0, len(real), step)
    ]
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)


def _planes(frames: np.ndarray, device: torch.device | str) -> Tensor:
    """Frames [n, H, W, 3] -> [n, 3, H, W] float64, in which differences of squares keep their digits."""
    return torch.from_numpy(np.array(frames)).to(device).movedim(-1, 1).double()


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    size = min(WINDOW, *x.shape[-2:])
    rows, columns = (_blur(length, size - (size + 1) % 2).to(x) for length in x.shape[-2:])

    def blurred(values: Tensor) -> Tensor:
        return rows @ values @ columns.T

    mean_x, mean_y = blurred(x), blurred(y)
    variances = blurred(x * x) - mean_x**2 + blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return similarity.mean((1, 2, 3))


@functools.lru_cache
def _blur(length: int, window: int) -> Tensor:
    """A matrix [length - window + 1, length]: the weighted mean of every window that lies inside a row of pixels."""
    distance = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.exp(-(distance**2) / (2 * SIGMA**2))
    places = torch.arange(length - window + 1)[:, None] + torch.arange(window)
    return torch.zeros(len(places), length, dtype=torch.float64).scatter(
        1, places, (weights / weights.sum()).expand(len(places), -1)
    )
