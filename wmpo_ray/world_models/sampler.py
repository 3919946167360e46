"""From noise to frames: rectified-flow sampling over a diffusers scheduler.

`euler` takes the steps of the published models. `unipc` (UniPC, Zhao et al. 2023, https://arxiv.org/abs/2302.04867) is of
second order: it remembers the step before and corrects it by the evaluation that the next one needs anyway, so that a
step costs what Euler's costs. Neither draws random numbers, and every row of a batch is integrated on its own: a sample
depends on its noise, actions and context alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.world_models.denoiser import TIME_SCALE, Conditioning, Denoiser
from wmpo_ray.world_models.diffusion_settings import SamplerConfig

with lean():
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

# Of second order: a third order is worse in few steps.
SCHEDULERS: dict[str, Callable[[float], Any]] = {
    "euler": lambda shift: FlowMatchEulerDiscreteScheduler(shift=shift),
    "unipc": lambda shift: UniPCMultistepScheduler(
        solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    ),
}


def resolution_shift(height: int, width: int) -> float:
    """Shift r of the time axis t' = r t / (1 + (r-1) t) for frames of this size in pixels; 1 at 256x256."""
    return math.sqrt(height * width / 512**2) * 2.0


def unipc_times(sigmas: Sequence[float], shift: float) -> list[float]:
    """The shifted times; the first lies 1e-6 below 1, where the logarithm of 1 - t is finite."""
    shifted = [shift * sigma / (1 + (shift - 1) * sigma) for sigma in sigmas]
    return [min(time, 1.0 - 1e-6) for time in shifted]


class RectifiedFlowSampler:
    """Integrates dx/dt = -v from t = 1 to 0 in `num_steps` steps, batched over trajectories."""

    def __init__(self, config: SamplerConfig):
        self.config = config
        self.scheduler = SCHEDULERS[config.solver](config.shift)

    @property
    def sigmas(self) -> list[float]:
        """The times before the resolution shift, from 1 downwards."""
        return [1.0 - i / self.config.num_steps for i in range(self.config.num_steps)]

    @property
    def evaluations_per_chunk(self) -> int:
        """How often `sample` calls the network."""
        return self.config.evaluations_per_chunk

    @torch.no_grad()
    def sample(self, denoiser: Denoiser, noise: Tensor, actions: Tensor, conditioning: Conditioning) -> Tensor:
        """noise [B, C, K, H, W], actions [B, K, D] -> clean latents [B, C, K, H, W] float32."""
        times = self._begin().to(noise.device)
        x = noise
        for time, timestep in zip(times, self.scheduler.timesteps, strict=True):
            v = denoiser.velocity(x, time.expand(len(x)), actions, conditioning)
            # diffusers steps along the direction noise - sample.
            x = self.scheduler.step(-v, timestep, x).prev_sample
        return x

    def _begin(self) -> Tensor:
        """Set the scheduler to its first step; the times in (0, 1] at which the network is asked, float32 on the CPU."""
        scheduler = self.scheduler
        scheduler.set_timesteps(sigmas=np.array(self.sigmas))
        scheduler.set_begin_index(0)
        if scheduler.timesteps.is_floating_point():
            return scheduler.timesteps / TIME_SCALE
        # UniPC cuts its timesteps to whole numbers, but not the times that it integrates over. It takes logarithms and
        # exponentials of those: in float64 its coefficients are rounded to float32 once, where they meet the samples.
        scheduler.sigmas = torch.tensor([*unipc_times(self.sigmas, self.config.shift), 0.0], dtype=torch.float64)
        return scheduler.sigmas[:-1].float()
