"""GRPO: group-relative advantages and the clipped objective (paper Eq. 3-5, Algorithm 1).

Switches of others: advantages without the division by the deviation (Dr. GRPO, arXiv 2503.20783), the mean over all
ratios of a mini-batch, and rewards that fall towards the horizon (both DAPO, arXiv 2503.14476). `GroupRelative` is what
the algorithms that learn from groups share; docs/algorithms.md compares them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.algorithms.base import Measure, OnlineAlgorithm, PartLoss
from wmpo_ray.algorithms.batching import (
    ActionBatch,
    Batch,
    GroupSlice,
    Shares,
    chunk_logprobs,
    executed_mask,
    parts_of,
    places_of,
    slices_of,
)
from wmpo_ray.config.algorithms import GroupSection, GrpoConfig
from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Policy, SampledInSteps
from wmpo_ray.core.types import Group, Trajectories, Verdict

Deviation = Literal["population", "unbiased", "none"]
Ratio = Literal["chunk", "step", "token"]
UNBIASED_EPS = 1e-6


@dataclass(frozen=True)
class GrpoBatch(ActionBatch):
    behavior_logprobs: Tensor  # [B, N, L] of sampling time
    advantage: Tensor  # [B]
    known: Tensor  # [B] bool: the others, whose outcome is unknown, have advantage 0 and no weight
    num_steps: int = 1  # S: in which the policy samples a chunk


class GroupRelative(OnlineAlgorithm):
    """Compares the members of a group with each other. A subclass brings the loss, and may bring the advantages.

    Metrics besides those of the loss: `policy/advantage_std` of the batch, and `policy/logprob_distance`. The latter is
    the mean distance between log-probabilities of sampling time and those that the learner computes before its
    first step. With the same weights it is rounding; more means that the two differ in what they compute, and with
    `filter.max_staleness` it grows with the age of the rollouts.
    """

    settings: GroupSection

    def __init__(self, config: Config):
        super().__init__(config)
        assert isinstance(config.training, GroupSection)
        self.settings = config.training

    def admit(self, group: Group) -> Verdict:
        """Dynamic sampling (paper section 3.3).

        A group whose outcomes are all equal has no advantage; one outside the configured success rates is too easy or
        too hard to be worth a slot. Members of unknown outcome do not count. Without dynamic sampling all are taken.
        """
        if not self.config.filter.dynamic_sampling:
            return Verdict.ADMIT
        success, bounds = group.outcomes, self.config.filter
        if success.all() or not success.any():
            return Verdict.UNIFORM if len(success) == len(group.success) else Verdict.UNDECIDED
        if not bounds.min_mean <= success.mean() <= bounds.max_mean:
            return Verdict.OUTSIDE
        return Verdict.ADMIT

    def prepare(self, policy: Policy, groups: Sequence[GroupSlice], sources: Sequence[Trajectories]) -> GrpoBatch:
        parts = slices_of(groups, sources)
        finish = torch.from_numpy(np.concatenate([group.finish_step for group in groups]))
        advantage, known = self._advantages(groups)
        states = [part.state for part in parts if part.state is not None]
        return GrpoBatch(
            images={camera: np.concatenate([part.images[camera] for part in parts]) for camera in parts[0].images},
            state=np.concatenate(states) if states else None,
            instructions=tuple(text for part in parts for text in part.instructions),
            metrics=_spread(advantage, known),
            record={
                name: torch.from_numpy(np.concatenate([part.record[name] for part in parts]))
                for name in parts[0].record
            },
            mask=executed_mask(policy, finish, parts[0].actions.shape[1]),
            behavior_logprobs=torch.from_numpy(np.concatenate([part.behavior_logprobs for part in parts])),
            advantage=advantage,
            known=known,
            num_steps=policy.num_sampling_steps if isinstance(policy, SampledInSteps) else 1,
        )

    def summary(self, groups: Sequence[GroupSlice]) -> dict[str, float]:
        return _spread(*self._advantages(groups))

    def _advantages(self, groups: Sequence[GroupSlice]) -> tuple[Tensor, Tensor]:
        """Advantage [B], and whether the outcome is known [B]."""
        rewards = torch.from_numpy(np.stack([group.success for group in groups])).float()
        if self.settings.overlong_steps:
            finish = torch.from_numpy(np.stack([group.finish_step for group in groups]))
            rewards = rewards + overlong_penalty(finish, self.config.rollout_horizon, self.settings.overlong_steps)
        known = torch.from_numpy(
            np.stack([np.ones_like(group.success) if group.known is None else group.known for group in groups])
        )
        return self.advantages(rewards, known).flatten(), known.flatten()

    def advantages(self, rewards: Tensor, known: Tensor) -> Tensor:
        """Advantage [groups, G] of rewards [groups, G], of which only those `known` [groups, G] bool count."""
        return advantages(rewards, "population", known)

    def measures(self, policy: Policy, batch: Batch, rows: slice, shares: Shares) -> Iterator[Measure]:
        assert isinstance(batch, GrpoBatch)
        for part in self._parts(batch, rows, shares):
            executed = batch.mask[rows] & part[..., None]
            distance = (self._logprobs(policy, batch, rows, part) - batch.behavior_logprobs[rows]).abs()[executed]
            yield Measure({"policy/logprob_distance": distance.mean()}, float(executed.sum()))

    def _parts(self, batch: GrpoBatch, rows: slice, shares: Shares) -> list[Tensor]:
        """Only decisions before the finish step are computed."""
        return parts_of(batch.mask[rows].any(-1), shares, self.settings.chunks_per_pass)

    def _logprobs(self, policy: Policy, batch: GrpoBatch, rows: slice, part: Tensor) -> Tensor:
        """Log-probabilities [b, N, L] of the chunks of a part [b, N], the behaviour's elsewhere."""
        places = places_of(part, batch.mask[rows].any(-1))
        chosen = chunk_logprobs(policy, batch, rows, places, self.config.rollout.temperature)
        behavior = batch.behavior_logprobs[rows]
        if not part.any():
            return behavior + 0.0 * chosen.sum()
        # Masked positions take the behaviour's value: their ratio is 1 and they carry no gradient.
        return behavior.masked_scatter(part[..., None].expand(behavior.shape), chosen)


class Grpo(GroupRelative):
    """Ratios of each chunk or token, clipped."""

    in_parts: ClassVar[bool] = True  # advantages are those of a group, the loss is a mean over a mini-batch
    settings: GrpoConfig

    def advantages(self, rewards: Tensor, known: Tensor) -> Tensor:
        return advantages(rewards, self.settings.advantage_std, known)

    def losses(self, policy: Policy, batch: Batch, rows: slice, shares: Shares) -> Iterator[PartLoss]:
        assert isinstance(batch, GrpoBatch)
        settings = self.settings
        for part in self._parts(batch, rows, shares):
            mask = batch.mask[rows] & part[..., None]
            value, metrics = loss(
                self._logprobs(policy, batch, rows, part),
                batch.behavior_logprobs[rows],
                batch.advantage[rows] * self._weights(mask, batch.mask[rows], batch.known[rows], batch.num_steps),
                mask,
                settings.clip_low,
                settings.clip_high,
                settings.ratio,
                batch.num_steps,
            )
            yield PartLoss(value, metrics, float(valid_ratios(mask, settings.ratio, batch.num_steps).sum()))

    def loss_weight(self, batch: Batch, rows: slice) -> float:
        """The trajectories of known outcome, or their ratios."""
        assert isinstance(batch, GrpoBatch)
        if self.settings.loss_mean != "ratio":
            return num_known(batch, rows)
        return float(valid_ratios(batch.mask[rows], self.settings.ratio, batch.num_steps)[batch.known[rows]].sum())

    def _weights(self, part: Tensor, mask: Tensor, known: Tensor, num_steps: int) -> Tensor:
        """What makes of `loss`, a mean over each trajectory of a part, the parts of the wanted mean: [b].

        part, mask [b, N, L] bool: tokens of the part and of the mini-batch; known [b] bool. `trajectory`: a part of a
        trajectory weighs as much as its share of it. `ratio`: as its share of all ratios of known outcome (DAPO Eq. 8).
        `horizon`: as its share of the longest trajectory there can be (Dr. GRPO, section 3.2).
        """
        ratio = self.settings.ratio
        here, of_all = (valid_ratios(each, ratio, num_steps).sum(1) for each in (part, mask))
        if self.settings.loss_mean == "ratio":
            return len(known) * here / of_all[known].sum().clamp_min(1)
        # A mean over the trajectories whose outcome is known, and 1 where all are.
        weight = len(known) / known.sum().clamp_min(1)
        if self.settings.loss_mean == "horizon":
            return weight * here / valid_ratios(torch.ones_like(mask), ratio, num_steps).sum(1)
        return weight * here / of_all.clamp_min(1)


def num_known(batch: Batch, rows: slice) -> float:
    """What a mean over the trajectories of known outcome is divided by."""
    assert isinstance(batch, GrpoBatch)
    return float(batch.known[rows].sum())


def _spread(advantage: Tensor, known: Tensor) -> dict[str, float]:
    return {"policy/advantage_std": float(advantage[known].std())}


# -- the formulas ------------------------------------------------------------------------------------------------


def advantages(rewards: Tensor, deviation: Deviation = "population", known: Tensor | None = None) -> Tensor:
    """(R - mean) / std within each group, [num_groups, G] -> [num_groups, G].

    known [num_groups, G] bool: the members that make up a group's mean and spread; the others have advantage 0.

    `population`: the standard deviation of Algorithm 1. `unbiased`: that of the published code, sqrt(sum / (G - 1)) plus
    1e-6, which takes the reward itself in a group of one. `none`: not divided (Dr. GRPO, section 3.2). A group of equal
    rewards has advantage 0.
    """
    if deviation == "unbiased" and rewards.shape[1] == 1:
        return rewards / (1 + UNBIASED_EPS)
    if known is not None and not known.all():
        return _advantages_of_known(rewards, deviation, known)
    exact = rewards.double()  # rounded once at the end: the order of sums in float32 depends on the processor
    centred = exact - exact.mean(1, keepdim=True)
    if deviation == "none":
        return centred.to(rewards.dtype)
    std = exact.std(1, keepdim=True, unbiased=deviation == "unbiased")
    divisor = std + UNBIASED_EPS if deviation == "unbiased" else std.clamp_min(torch.finfo(exact.dtype).tiny)
    return torch.where(std > 0, centred / divisor, torch.zeros_like(centred)).to(rewards.dtype)


def overlong_penalty(finish_step: Tensor, horizon: int, num_steps: int) -> Tensor:
    """What is taken from the reward of a trajectory that ends at `finish_step` [...]: [...] float32 in [-1, 0].

    DAPO Eq. 13, in steps of the robot for tokens of a text: nothing until `num_steps` before the horizon, then a straight
    line to -1 there. Every failure ends at the horizon, so among successes the early ones are preferred.
    """
    return ((horizon - num_steps - finish_step.double()) / num_steps).clamp(-1, 0).float()


def _advantages_of_known(rewards: Tensor, deviation: Deviation, known: Tensor) -> Tensor:
    """Group by group, because each has another size."""
    found = torch.zeros_like(rewards)
    for group, members in enumerate(known):
        if members.any():
            found[group, members] = advantages(rewards[group, members][None], deviation)[0]
    return found


def log_ratios(logprobs: Tensor, behavior_logprobs: Tensor, ratio: Ratio, num_steps: int = 1) -> Tensor:
    """Logarithm of pi / pi_behavior of each chunk, [B, N, L] -> [B, N].

    Or of each of the S steps in which a chunk was sampled, -> [B, N*S]; or of each log-probability, -> [B, N*L].
    """
    difference = logprobs - behavior_logprobs
    if ratio == "step":
        return difference.unflatten(-1, (num_steps, -1)).sum(-1).flatten(1)
    return difference.sum(-1) if ratio == "chunk" else difference.flatten(1)


def valid_ratios(mask: Tensor, ratio: Ratio, num_steps: int = 1) -> Tensor:
    """Which of these ratios hold a log-probability of the mask [B, N, L] bool."""
    if ratio == "step":
        return mask.unflatten(-1, (num_steps, -1)).any(-1).flatten(1)
    return mask.any(-1) if ratio == "chunk" else mask.flatten(1)


def loss(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    ratio: Ratio = "chunk",
    num_steps: int = 1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative of Eq. 4 over B trajectories, and its components.

    logprobs, behavior_logprobs [B, N, L] of the sampled chunks (temperature applied), advantage [B], mask [B, N, L]
    True where it is of an action executed before the finish step. `chunk` takes one ratio for each chunk
    (log-probabilities summed over it, chunk valid if any of them is); `token` one for each token, as the reference does;
    `step` one for each of the `num_steps` steps of a denoising path, as Flow-GRPO does (arXiv 2505.05470).
    Mean over the valid ratios of a trajectory, then over trajectories.

    `policy/clip_fraction` is the share of ratios outside the bounds, `policy/clip_active` of those for which that takes
    the gradient away; `policy/kl` is the mean of log(pi_behavior / pi), an estimate of the divergence (k1).
    """
    difference = log_ratios(logprobs, behavior_logprobs, ratio, num_steps)
    valid = valid_ratios(mask, ratio, num_steps).to(difference.dtype)
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
