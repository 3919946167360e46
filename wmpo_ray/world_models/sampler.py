"""From noise to frames: rectified-flow sampling over a diffusers scheduler."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from wmpo_ray.config import SamplerConfig
from wmpo_ray.world_models.denoiser import TIME_SCALE, Conditioning, Denoiser


def resolution_shift(height: int, width: int) -> float:
    """Shift r of the time axis t' = r t / (1 + (r-1) t) for frames of this size in pixels; 1 at 256x256."""
    return (height * width / 512**2) ** 0.5 * 2.0


class RectifiedFlowSampler:
    """Integrates dx/dt = -v from t = 1 to 0 in `num_steps` steps, batched over trajectories."""

    def __init__(self, config: SamplerConfig):
        self.config = config
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=config.shift)

    @property
    def sigmas(self) -> list[float]:
        """The times before the resolution shift, from 1 downwards."""
        return [1.0 - i / self.config.num_steps for i in range(self.config.num_steps)]

    @torch.no_grad()
    def sample(self, denoiser: Denoiser, noise: Tensor, actions: Tensor, conditioning: Conditioning) -> Tensor:
        """noise [B, C, K, H, W], actions [B, K, D] -> clean latents [B, C, K, H, W] float32."""
        self.scheduler.set_timesteps(sigmas=self.sigmas, device=noise.device)
        x = noise
        for timestep in self.scheduler.timesteps:
            t = (timestep / TIME_SCALE).float().expand(len(x))
            v = denoiser.velocity(x, t, actions, conditioning)
            # diffusers steps along the direction noise - sample.
            x = self.scheduler.step(-v, timestep, x).prev_sample
        return x
