"""GRPO: group-relative advantages and the clipped objective (paper Eq. 3-5, Algorithm 1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def advantages(rewards: Tensor) -> Tensor:
    """(R - mean) / std within each group, [num_groups, G] -> [num_groups, G].

    The population standard deviation of Algorithm 1. A group of equal rewards has advantage 0.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    std = rewards.std(1, keepdim=True, unbiased=False)
    return torch.where(std > 0, centred / std.clamp_min(torch.finfo(rewards.dtype).tiny), torch.zeros_like(centred))


def loss(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    ratio: Literal["chunk", "token"] = "chunk",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative of Eq. 4 over B trajectories, and what it is made of.

    logprobs, behavior_logprobs [B, N, L] of the sampled tokens (temperature applied), advantage [B], mask [B, N, L]
    True where a token was executed before the finish step. `chunk` takes one ratio for each chunk (log-probabilities
    summed over its tokens, chunk valid if any of its tokens is); `token` one for each token, as the reference does.
    Mean over the valid ratios of a trajectory, then over trajectories.
    """
    difference = logprobs - behavior_logprobs
    if ratio == "chunk":
        difference, valid = difference.sum(-1), mask.any(-1)
    else:
        difference, valid = difference.flatten(1), mask.flatten(1)
    valid = valid.to(difference.dtype)
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
        "policy/logprob_change": (difference.detach().abs() * valid).sum() / total,
    }
    return -objective, metrics
