"""DPO: direct preference optimization on recorded episodes, a success preferred to a failure at the same task.

    L = - E over pairs (w, l) [ log sigmoid( beta * (log pi(w) / ref(w) - log pi(l) / ref(l)) ) ]

(Rafailov et al. 2023, Eq. 7), with log pi(tau) the sum of the log-probabilities of all actions that were executed in a
trajectory (Zhang et al. 2024, GRAPE, Eq. 4), and ref the base policy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wmpo_ray.algorithms.base import OfflineAlgorithm, PartLoss
from wmpo_ray.algorithms.batching import ActionBatch, Batch, Shares, chunk_logprobs, executed_mask, parts_of, places_of
from wmpo_ray.algorithms.recorded import decisions, draw
from wmpo_ray.config.run import Config, DpoConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import ActionEncoder, Policy
from wmpo_ray.core.observations import MAIN_CAMERA
from wmpo_ray.core.types import Episodes


@dataclass(frozen=True)
class PairBatch(ActionBatch):
    """Rows 2i and 2i + 1 are a pair: the preferred trajectory, then the rejected one."""

    reference: Tensor  # [B]: log-probability of each trajectory under the base policy


def dpo_loss(logprobs: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of pairs, from log-probabilities of whole trajectories [2P], preferred and rejected in turns.

    `preference/accuracy` is the share of pairs whose preferred trajectory has gained more than the other,
    `preference/margin` the mean of what the sigmoid is taken of, `preference/preferred_logratio` and
    `preference/rejected_logratio` the means of log pi / ref. Both log-ratios falling is common, and harmless only while
    the margin grows.
    """
    preferred, rejected = (logprobs - reference).view(-1, 2).unbind(1)
    margin = beta * (preferred - rejected)
    metrics = {
        "preference/accuracy": (margin > 0).float().mean(),
        "preference/margin": margin.mean(),
        "preference/preferred_logratio": preferred.mean(),
        "preference/rejected_logratio": rejected.mean(),
    }
    return -F.logsigmoid(margin).mean(), {name: value.detach() for name, value in metrics.items()}


class Dpo(OfflineAlgorithm):
    """Metrics besides those of `dpo_loss`: `preference/pairs`, the pairs of an update."""

    def __init__(self, config: Config):
        super().__init__(config)
        assert isinstance(config.training, DpoConfig)
        self.settings: DpoConfig = config.training

    def prepare(self, policy: Policy, episodes: Episodes, shares: Shares, beat: Callable[[], None]) -> Pairs:
        """Finds pairs and computes the reference log-probabilities once, for all episodes that the run will draw.

        Raises UserError where there are no pairs, or the policy cannot encode actions.
        """
        if not isinstance(policy, ActionEncoder):
            raise UserError(
                f"policy.kind={self.config.policy.kind}: it cannot encode recorded actions, which algorithm.kind="
                f'{self.config.algorithm.kind} needs; choose another policy, or algorithm.kind="filtered_bc"'
            )
        pairs = Pairs(episodes, candidates(episodes), policy, self.settings, self.config.seed)
        drawn = {int(row) for update in range(self.settings.num_updates) for row in pairs.draw(update)}
        rows = np.array(sorted(drawn))
        size = self.settings.minibatch_trajectories
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            pairs.reference[some] = self.trajectory_logprobs(policy, pairs.batch_of(some), slice(None), shares)
            beat()
        return pairs

    def losses(self, policy: Policy, batch: Batch, rows: slice, shares: Shares) -> Iterator[PartLoss]:
        """The loss is no sum over chunks, but its gradient is.

        So whole trajectories are summed up without gradients first; then each part adds (dL / d log pi(tau)) * log pi
        of its chunks. That is the exact gradient, in the memory of one part, for one more forward pass.
        """
        assert isinstance(batch, PairBatch)
        sums = self.trajectory_logprobs(policy, batch, rows, shares).requires_grad_()
        loss, metrics = dpo_loss(sums, batch.reference[rows], self.settings.beta)
        (slope,) = torch.autograd.grad(loss, sums)
        parts = self._parts(batch, rows, shares)
        # Of the value, which is known as a whole, the parts of all processes have equal shares.
        share = loss.detach() / shares.total(torch.tensor([float(len(parts))])).item()
        for part in parts:
            own = self._part_sums(policy, batch, rows, part)
            linear = (slope * own).sum()
            yield PartLoss(linear - linear.detach() + share, metrics, 1.0)

    @torch.no_grad()
    def trajectory_logprobs(self, policy: Policy, batch: ActionBatch, rows: slice, shares: Shares) -> Tensor:
        """Log-probability [b] of each trajectory: the sum over its executed actions."""
        sums = torch.zeros(len(batch.mask[rows]))
        for part in self._parts(batch, rows, shares):
            sums += self._part_sums(policy, batch, rows, part)
        return shares.total(sums)

    def _parts(self, batch: ActionBatch, rows: slice, shares: Shares) -> list[Tensor]:
        return parts_of(batch.mask[rows].any(-1), shares, self.settings.chunks_per_pass)

    def _part_sums(self, policy: Policy, batch: ActionBatch, rows: slice, part: Tensor) -> Tensor:
        """The contribution of the chunks of a part [b, N] to the log-probability of their trajectories [b]."""
        mask = batch.mask[rows]
        places = places_of(part, mask.any(-1))
        logprobs = chunk_logprobs(policy, batch, rows, places, self.config.rollout.temperature)
        first, second = places.unbind(1)
        executed = (mask & part[..., None])[first, second]
        return torch.zeros(len(mask)).index_add(0, first, (logprobs * executed).sum(1))


# -- pairs -------------------------------------------------------------------------------------------------------


class Pairs:
    """Recorded episodes with the failures that each success may be preferred to."""

    def __init__(
        self,
        episodes: Episodes,
        candidates: dict[int, np.ndarray],
        policy: Any,  # an ActionEncoder as well
        settings: DpoConfig,
        seed: int,
    ):
        self.episodes, self.settings, self.seed = episodes, settings, seed
        self.candidates, self.preferred = candidates, np.array(sorted(candidates))
        self.policy = policy
        self.reference = torch.zeros(len(episodes))  # filled in by `Dpo.prepare`

    def draw(self, update: int) -> np.ndarray:
        """Episodes [2P] of an update, preferred and rejected in turns: each success at most once, with any failure."""
        key = (self.seed, "dpo", update)
        preferred = self.preferred[draw(len(self.preferred), self.settings.episodes_per_update // 2, *key)]
        rejected = [self.candidates[i][draw(len(self.candidates[i]), 1, *key, int(i))[0]] for i in preferred]
        return np.stack([preferred, np.array(rejected)], 1).ravel()

    def batch(self, update: int) -> PairBatch:
        return self.batch_of(self.draw(update))

    def batch_of(self, rows: np.ndarray) -> PairBatch:
        """The episodes at rows [B]."""
        chunk_length = self.policy.chunk_length
        frames, actions, executed = decisions(self.episodes, rows, chunk_length, chunk_length)
        record = self.policy.encode(actions.flatten(0, 1))
        return PairBatch(
            images={MAIN_CAMERA: frames},
            state=None,
            instructions=tuple(self.episodes.instructions[i] for i in rows),
            metrics={"preference/pairs": len(rows) / 2},
            record={name: values.unflatten(0, actions.shape[:2]) for name, values in record.items()},
            mask=executed_mask(self.policy, executed.sum(1), actions.shape[1]),
            reference=self.reference[rows],
        )


def candidates(episodes: Episodes) -> dict[int, np.ndarray]:
    """For each success, the failures at the same instruction, and from the same start state where there are any.

    Raises UserError where there are none at all.
    """
    by_text: dict[str, list[int]] = defaultdict(list)
    by_start: dict[tuple[str, int], list[int]] = defaultdict(list)
    usable = episodes.lengths > 0
    for i in np.nonzero(~episodes.success & usable)[0].tolist():
        by_text[episodes.instructions[i]].append(i)
        by_start[episodes.instructions[i], int(episodes.seeds[i])].append(i)
    found = {}
    for i in np.nonzero(episodes.success & usable)[0].tolist():
        text = episodes.instructions[i]
        if failures := by_start.get((text, int(episodes.seeds[i]))) or by_text.get(text):
            found[i] = np.array(failures)
    if not found:
        successes = int(episodes.success.sum())
        raise UserError(
            f"{successes} of the {len(episodes)} recorded episodes succeeded and {len(episodes) - successes} failed, and "
            "no success has the instruction of a failure, so there are no pairs; record more episodes "
            "(collect.num_trajectories)"
        )
    return found
