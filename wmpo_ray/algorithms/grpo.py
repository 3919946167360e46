"""GRPO: group-relative advantages and the clipped objective (paper Eq. 3-5, Algorithm 1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Deviation = Literal["population", "unbiased"]
Ratio = Literal["chunk", "token"]
UNBIASED_EPS = 1e-6


def advantages(rewards: Tensor, deviation: Deviation = "population") -> Tensor:
    """(R - mean) / std within each group, [num_groups, G] -> [num_groups, G].

    `population`: the standard deviation of Algorithm 1. `unbiased`: that of the published code, sqrt(sum / (G - 1)) plus
    1e-6, which takes the reward itself in a group of one. A group of equal rewards has advantage 0.
    """
    if deviation == "unbiased" and rewards.shape[1] == 1:
        return rewards / (1 + UNBIASED_EPS)
    exact = rewards.double()  # rounded once at the end: the order of sums in float32 depends on the processor
    centred = exact - exact.mean(1, keepdim=True)
    std = exact.std(1, keepdim=True, unbiased=deviation == "unbiased")
    divisor = std + UNBIASED_EPS if deviation == "unbiased" else std.clamp_min(torch.finfo(exact.dtype).tiny)
    return torch.where(std > 0, centred / divisor, torch.zeros_like(centred)).to(rewards.dtype)


def log_ratios(logprobs: Tensor, behavior_logprobs: Tensor, ratio: Ratio) -> Tensor:
    """Logarithm of pi / pi_behavior of each chunk, [B, N, L] -> [B, N], or of each token, -> [B, N*L]."""
    difference = logprobs - behavior_logprobs
    return difference.sum(-1) if ratio == "chunk" else difference.flatten(1)


def loss(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    ratio: Ratio = "chunk",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative of Eq. 4 over B trajectories, and what it is made of.

    logprobs, behavior_logprobs [B, N, L] of the sampled tokens (temperature applied), advantage [B], mask [B, N, L]
    True where a token was executed before the finish step. `chunk` takes one ratio for each chunk (log-probabilities
    summed over its tokens, chunk valid if any of its tokens is); `token` one for each token, as the reference does.
    Mean over the valid ratios of a trajectory, then over trajectories.

    `policy/clip_fraction` is the share of ratios outside the bounds, `policy/clip_active` of those for which that takes
    the gradient away; `policy/kl` is the mean of log(pi_behavior / pi), an estimate of the divergence (k1).
    """
    difference = log_ratios(logprobs, behavior_logprobs, ratio)
    valid = (mask.any(-1) if ratio == "chunk" else mask.flatten(1)).to(difference.dtype)
    ratios = difference.exp()
    clipped = ratios.clamp(1 - clip_low, 1 + clip_high)
    gain = torch.minimum(ratios * advantage[:, None], clipped * advantage[:, None])
    count = valid.sum(1).clamp_min(1)
    objective = ((gain * valid).sum(1) / count).mean()
    total = valid.sum().clamp_min(1)
    metrics = {
        "policy/ratio_mean": (ratios.detach() * valid).sum() / total,
        "policy/ratio_max": (ratios.detach() * valid).max(),
        "policy/clip_fraction": ((ratios.detach() != clipped.detach()) * valid).sum() / total,
        "policy/clip_active": ((gain.detach() < (ratios * advantage[:, None]).detach()) * valid).sum() / total,
        "policy/kl": (-difference.detach() * valid).sum() / total,
        "policy/logprob_change": (difference.detach().abs() * valid).sum() / total,
    }
    return -objective, metrics
