"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740, section 3.3; Kool et al. 2019).

    A_i  = R_i - mean of R_j over the other members of the group
    loss = - E_i [ A_i * sum over executed tokens log pi(token) ]

The whole trajectory counts as one action. Nothing corrects for rollouts of other weights, so an update of several
mini-batches is on-policy in the first of them only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from wmpo_ray.algorithms.base import PartLoss
from wmpo_ray.algorithms.batching import Batch, Shares
from wmpo_ray.algorithms.grpo import GroupRelative, GrpoBatch, num_known
from wmpo_ray.core.interfaces import Policy


class Rloo(GroupRelative):
    in_parts: ClassVar[bool] = True

    def advantages(self, rewards: Tensor, known: Tensor) -> Tensor:
        return leave_one_out(rewards, known)

    def loss_weight(self, batch: Batch, rows: slice) -> float:
        return num_known(batch, rows)

    def losses(self, policy: Policy, batch: Batch, rows: slice, shares: Shares) -> Iterator[PartLoss]:
        assert isinstance(batch, GrpoBatch)
        behavior, advantage = batch.behavior_logprobs[rows], batch.advantage[rows]
        num_known = batch.known[rows].sum().clamp_min(1)
        for part in self._parts(batch, rows, shares):
            mask = batch.mask[rows] & part[..., None]
            logprobs = self._logprobs(policy, batch, rows, part)
            value = -(advantage * (logprobs * mask).sum((1, 2))).sum() / num_known
            change, num = (logprobs.detach() - behavior) * mask, mask.sum()
            metrics = {
                "policy/kl": -change.sum() / num.clamp_min(1),
                "policy/logprob_change": change.abs().sum() / num.clamp_min(1),
            }
            yield PartLoss(value, metrics, float(num))


def leave_one_out(rewards: Tensor, known: Tensor) -> Tensor:
    """R_i - mean of the others' R, [groups, G] -> [groups, G]; 0 for a member that is not known [groups, G] or alone."""
    exact = torch.where(known, rewards.double(), 0.0)  # rounded once at the end
    num_others = known.sum(1, keepdim=True) - 1
    others = (exact.sum(1, keepdim=True) - exact) / num_others.clamp_min(1)
    return torch.where(known & (num_others > 0), exact - others, 0.0).to(rewards.dtype)
