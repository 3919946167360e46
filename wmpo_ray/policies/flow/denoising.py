"""Rectified flow: what is learned, the ODE that samples it, and the SDE with the same marginals, whose path has a density.

x_0 is a sample of the data, x_1 normal noise; a path goes from time 1 to time 0.

    x_t = (1 - t) x_0 + t x_1,  v = x_1 - x_0                              Liu et al. 2022, rectified flow
    loss = E || v_theta(x_t, t) - v ||^2                                   the same
    ODE  dx = v_theta dt
    SDE  dx = [v_theta + s^2 / (2t) (x + (1 - t) v_theta)] dt + s dw       with s = a sqrt(t / (1 - t))
    one step of size h < 0 of the SDE (Euler-Maruyama)
         x' = x + [v_theta + s^2 / (2t) (x + (1 - t) v_theta)] h + s sqrt(-h) noise

The SDE and its step: Flow-GRPO, Liu et al. 2025, arXiv 2505.05470, where it goes from ODE to SDE. The second term of the
drift is -s^2/2 times the score, because the score of x_t is -(x + (1 - t) v) / t. A step is Gaussian given x, so a path
has a log-probability: the sum of its steps'. Where the paper's code takes the mean over the values of a step, the sums
here are those of the density itself.

Shapes: B rows, S steps, any sample shape behind; K actions of D dimensions in a chunk.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor


class Denoising(NamedTuple):
    """How a chunk is sampled and cloned; none of it is in the weights."""

    ode_steps: int = 10  # at temperature 0
    sde_steps: int = 4  # at any other
    noise: float = 0.7  # a of the SDE's noise at temperature 1, which multiplies it
    cloning_draws: int = 4  # noisy versions of each chunk in the cloning loss


class StepRule(NamedTuple):
    """A step is x' = `keep` x + `push` v + `spread` noise."""

    keep: float
    push: float
    spread: float


def times_of(num_steps: int) -> list[float]:
    """The S + 1 times of a path, 1 first, 0 last."""
    return [1 - step / num_steps for step in range(num_steps)] + [0.0]


def step_rule(time: float, following: float, noise: float) -> StepRule:
    """The step from `time` to the smaller `following`; `noise` is a of s = a sqrt(t / (1 - t)), 0: the ODE.

    At t = 1, where s has no bound, its denominator is that of `following`, as in the paper's code.
    """
    size = following - time
    squared = noise**2 * time / (1 - (time if time < 1 else following))
    pull = squared / (2 * time)
    return StepRule(1 + pull * size, (1 + pull * (1 - time)) * size, math.sqrt(-squared * size))


@functools.cache
def path_rules(num_steps: int, noise: float) -> tuple[StepRule, ...]:
    """Those of the S steps of a path."""
    times = times_of(num_steps)
    return tuple(step_rule(times[step], times[step + 1], noise) for step in range(num_steps))


def path_log_probs(path: Tensor, velocity: Tensor, noise: float) -> Tensor:
    """Log-density of each value of each step of a path.

    path [B, S+1, K, D] with the noise it began with first, velocity [B, S, K, D] at its first S states; -> [B, S*K*D],
    one step after the other. `noise` is above 0.
    """
    rules = torch.tensor(path_rules(velocity.shape[1], noise), dtype=path.dtype, device=path.device)
    keep, push, spread = rules.T[:, :, None, None]
    mean = keep * path[:, :-1] + push * velocity
    scaled = (path[:, 1:] - mean) / spread
    return (-0.5 * scaled * scaled - spread.log() - 0.5 * math.log(2 * math.pi)).flatten(1)


def noised(actions: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and its velocity v, for data and noise [..., K, D] and times [...]."""
    time = time[..., None, None]
    return (1 - time) * actions + time * noise, noise - actions
