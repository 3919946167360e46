"""LPIPS, a learned distance of pictures, from weights that are on the disk. Nothing is ever downloaded.

    python -c "import lpips, safetensors.torch as s; s.save_file(
        {k: v.clone() for k, v in lpips.LPIPS(net='alex').state_dict().items()}, 'lpips-alex.safetensors')"

writes them, in an environment with the package lpips.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import all_finite, tensor_specs

# AlexNet's convolutions: (name in the file, channels in and out, kernel, stride, padding, pooled before).
LAYERS = (
    ("net.slice1.0", 3, 64, 11, 4, 2, False),
    ("net.slice2.3", 64, 192, 5, 1, 2, True),
    ("net.slice3.6", 192, 384, 3, 1, 1, True),
    ("net.slice4.8", 384, 256, 3, 1, 1, False),
    ("net.slice5.10", 256, 256, 3, 1, 1, False),
)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]
EPSILON = 1e-10
SMALLEST = 64  # pixels of a side; smaller frames are enlarged, since AlexNet leaves nothing of them
FRAMES_PER_BATCH = 64


class LearnedDistance(nn.Module):
    """LPIPS v0.1 with AlexNet (Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018)."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, k, s, p) for _, i, o, k, s, p, _ in LAYERS)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(1, layer[2], 1, 1)) for layer in LAYERS)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))

    @classmethod
    def load(cls, path: Path) -> LearnedDistance:
        """From a safetensors file with the names of the package lpips. Raises UserError for any other file."""
        from safetensors.torch import load_file

        specs, network = tensor_specs(path), cls()
        wanted = network.named_in_file()
        for name, tensor in wanted.items():
            found = specs.get(name)
            if found is None or (found.dtype, found.shape) != ("F32", tuple(tensor.shape)):
                held = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise UserError(
                    f"--lpips {path}: {name} must be F32 {list(tensor.shape)} and is {held}; write the file from the "
                    'state_dict of lpips.LPIPS(net="alex")'
                )
        state = load_file(path)
        with torch.no_grad():
            for name, tensor in wanted.items():
                if not all_finite(state[name]):
                    raise UserError(f"--lpips {path}: {name} holds values that are not finite")
                tensor.copy_(state[name])
        return network.eval()

    def named_in_file(self) -> dict[str, Tensor]:
        """The tensors of the network by their names in the file."""
        found: dict[str, Tensor] = {}
        for number, (layer, *_) in enumerate(LAYERS):
            for name, parameter in self.convolutions[number].named_parameters():
                found[f"{layer}.{name}"] = parameter
            found[f"lin{number}.model.1.weight"] = self.weights[number]
        return found

    @torch.no_grad()
    def between(self, real: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """Distance [N] of frames [N, H, W, 3] uint8; 0 where they are equal."""
        parts = [
            self(self._pixels(real[i : i + FRAMES_PER_BATCH]), self._pixels(shown[i : i + FRAMES_PER_BATCH]))
            for i in range(0, len(real), FRAMES_PER_BATCH)
        ]
        return torch.cat(parts).cpu().numpy() if parts else np.zeros(0, np.float32)

    def _pixels(self, frames: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.array(frames)).to(self.scale.device).movedim(-1, 1).float() / 127.5 - 1
        factor = -(-SMALLEST // min(pixels.shape[-2:]))
        return pixels if factor <= 1 else functional.interpolate(pixels, scale_factor=factor, mode="nearest")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] in [-1, 1] twice -> distance [N]."""
        x, y = (x - self.shift) / self.scale, (y - self.shift) / self.scale
        distance = x.new_zeros(len(x))
        for layer, convolution, weight in zip(LAYERS, self.convolutions, self.weights, strict=True):
            if layer[-1]:
                x, y = functional.max_pool2d(x, 3, 2), functional.max_pool2d(y, 3, 2)
            x, y = functional.relu(convolution(x)), functional.relu(convolution(y))
            distance = distance + (weight * (_normalised(x) - _normalised(y)) ** 2).sum(1).mean((1, 2))
        return distance


def _normalised(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + EPSILON)
