"""REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): GRPO's clipped objective with advantages normalized over the batch.

    A_i  = (R'_i - mean of R' over the batch) / (std of R' over the batch)
    R'_i = R_i, or, "with baseline", R_i - mean of R over the group

The paper's penalty for leaving the first policy is not there, as in the rest of this system.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from wmpo_ray.algorithms.base import PartLoss
from wmpo_ray.algorithms.batching import Batch, Shares
from wmpo_ray.algorithms.grpo import GroupRelative, GrpoBatch, advantages, loss, valid_ratios
from wmpo_ray.config.algorithms import ReinforcePpConfig
from wmpo_ray.core.interfaces import Policy


class ReinforcePp(GroupRelative):
    """Needs all groups of an update before its first step: mini-batches are not prepared as they come."""

    settings: ReinforcePpConfig

    def advantages(self, rewards: Tensor, known: Tensor) -> Tensor:
        if self.settings.baseline == "group":
            rewards = advantages(rewards, "none", known)
        return over_batch(rewards, known)

    def losses(self, policy: Policy, batch: Batch, rows: slice, shares: Shares) -> Iterator[PartLoss]:
        assert isinstance(batch, GrpoBatch)
        settings, mask, known = self.settings, batch.mask[rows], batch.known[rows]
        weight = len(known) / known.sum().clamp_min(1)  # a mean over the trajectories of known outcome
        for part in self._parts(batch, rows, shares):
            here = mask & part[..., None]
            num = valid_ratios(here, settings.ratio, batch.num_steps).sum(1)
            share = weight * num / valid_ratios(mask, settings.ratio, batch.num_steps).sum(1).clamp_min(1)
            value, metrics = loss(
                self._logprobs(policy, batch, rows, part),
                batch.behavior_logprobs[rows],
                batch.advantage[rows] * share,
                here,
                settings.clip_low,
                settings.clip_high,
                settings.ratio,
                batch.num_steps,
            )
            yield PartLoss(value, metrics, float(num.sum()))


def over_batch(rewards: Tensor, known: Tensor) -> Tensor:
    """(R - mean) / std over all members that are known, [groups, G] -> [groups, G]; 0 for the others, and for equal ones."""
    exact = rewards.double()
    if not known.any() or not (std := exact[known].std(unbiased=False)) > 0:
        return torch.zeros_like(rewards)
    return torch.where(known, (exact - exact[known].mean()) / std, 0.0).to(rewards.dtype)
