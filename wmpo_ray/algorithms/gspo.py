"""GSPO: one importance ratio for each trajectory (Zheng et al. 2025, arXiv 2507.18071, Eq. 5-7).

    s_i  = exp( mean over executed tokens of log pi(token) / pi_behavior(token) )
    loss = - E_i [ min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i) ]

with the advantages of GRPO. A trajectory that leaves the bounds is left out as a whole. The decisions of a trajectory may
lie in several parts, of which only one has its activations at a time, so its ratio is found first. The parts then have
the gradient of the paper's GSPO-token (Eq. 13 and 14), which is the same: s_i / |o_i| times the sum of their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from wmpo_ray.algorithms.base import PartLoss
from wmpo_ray.algorithms.batching import Batch, Shares
from wmpo_ray.algorithms.grpo import GroupRelative, GrpoBatch, num_known
from wmpo_ray.config.algorithms import GspoConfig
from wmpo_ray.core.interfaces import Policy


class Gspo(GroupRelative):
    in_parts: ClassVar[bool] = True
    settings: GspoConfig

    def loss_weight(self, batch: Batch, rows: slice) -> float:
        return num_known(batch, rows)

    def losses(self, policy: Policy, batch: Batch, rows: slice, shares: Shares) -> Iterator[PartLoss]:
        assert isinstance(batch, GrpoBatch)
        parts = self._parts(batch, rows, shares)
        masks = [batch.mask[rows] & part[..., None] for part in parts]
        behavior, length = batch.behavior_logprobs[rows], batch.mask[rows].sum((1, 2)).clamp_min(1)
        weight = batch.known[rows] / batch.known[rows].sum().clamp_min(1)

        def changes(number: int) -> Tensor:
            """Sum of the log-ratios of each trajectory's tokens in a part [b]."""
            return ((self._logprobs(policy, batch, rows, parts[number]) - behavior) * masks[number]).sum((1, 2))

        only = changes(0) if len(parts) == 1 else None  # of this process: every process has as many parts
        with torch.no_grad():
            here = only.detach().clone() if only is not None else sum(changes(number) for number in range(len(parts)))
            ratio = (shares.total(torch.as_tensor(here)) / length).exp()  # the total is taken in place
        gain, is_active, metrics = clipped(
            ratio, batch.advantage[rows], self.settings.clip_low, self.settings.clip_high
        )
        metrics |= {"policy/kl": -(ratio.log() * weight).sum(), "policy/ratio_max": ratio.max()}
        for number, mask in enumerate(masks):
            change = only if only is not None else changes(number)
            slope = (weight * ratio * batch.advantage[rows] * is_active * change / length).sum()
            value = (weight * gain * mask.sum((1, 2)) / length).sum()
            yield PartLoss(-(value + slope - slope.detach()), metrics, len(mask) / len(masks))


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """min(s A, clip(s) A) of each trajectory [b], whether it has a gradient [b] bool, and metrics."""
    bounded = ratio.clamp(1 - low, 1 + high)
    gain = torch.minimum(ratio * advantage, bounded * advantage)
    is_active = gain == ratio * advantage
    metrics = {
        "policy/ratio_mean": ratio.mean(),
        "policy/clip_fraction": (ratio != bounded).float().mean(),
        "policy/clip_active": (~is_active).float().mean(),
    }
    return gain, is_active, metrics
