"""Filtered behaviour cloning: imitate the episodes that succeeded, and ignore the others.

    loss = E over decisions (o, a) of successful episodes [ the policy's cloning loss at o, for the next K actions a ]

The simplest way to learn from a policy's own real episodes: one round of expert iteration, or of reward-weighted
regression with weights of 0 and 1 (Oh et al. 2018, Self-Imitation Learning; Chen et al. 2020, BAIL).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from wmpo_ray.algorithms.base import OfflineAlgorithm, PartLoss
from wmpo_ray.algorithms.batching import Batch, Shares, parts_of, places_of
from wmpo_ray.algorithms.recorded import decisions, draw
from wmpo_ray.config.run import Config, FilteredBcConfig
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.observations import MAIN_CAMERA
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Episodes


@dataclass(frozen=True)
class CloningBatch(Batch):
    actions: Tensor  # [B, N, K, D]: the episode's next actions
    decided: Tensor  # [B, N] bool: before the end of the episode
    key: int  # of the noise that a policy's loss may draw; every epoch draws the same


@dataclass(frozen=True)
class Successes:
    """The successful ones among recorded episodes."""

    episodes: Episodes
    rows: np.ndarray  # [S]: their rows among all episodes
    chunk_length: int
    settings: FilteredBcConfig
    seed: int

    def batch(self, update: int) -> CloningBatch:
        rows = self.rows[draw(len(self.rows), self.settings.episodes_per_update, self.seed, "filtered_bc", update)]
        stride = 1 if self.settings.learns_every_step else self.chunk_length
        frames, actions, executed = decisions(self.episodes, rows, stride, self.chunk_length)
        texts = tuple(self.episodes.instructions[i] for i in rows)
        return CloningBatch(
            {MAIN_CAMERA: frames},
            None,
            texts,
            {"cloning/episodes": float(len(rows))},
            actions,
            executed > 0,
            seed_for(self.seed, "cloning-noise", update),
        )


class FilteredBc(OfflineAlgorithm):
    """Every step of an episode before its end is a decision, as in cloning, and each one weighs the same.

    With `decisions = "chunks"` only steps where the policy decided are: the actions between were planned from an earlier
    frame, and cloned at their own step they teach a policy to act on what it does not see.

    `policy/loss` is the mean cloning loss (cross-entropy of action tokens); `cloning/episodes` the episodes of an update.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        assert isinstance(config.training, FilteredBcConfig)
        self.settings: FilteredBcConfig = config.training

    def prepare(self, policy: Policy, episodes: Episodes, shares: Shares, beat: Callable[[], None]) -> Successes:
        rows = np.nonzero(episodes.success & (episodes.lengths > 0))[0]
        if not len(rows):
            raise UserError(
                f"none of the {len(episodes)} recorded episodes succeeded, so there is nothing to clone; record more of "
                "them (collect.num_trajectories) or start from a better policy"
            )
        return Successes(episodes, rows, policy.chunk_length, self.settings, self.config.seed)

    def losses(self, policy: Policy, batch: Batch, rows: slice, shares: Shares) -> Iterator[PartLoss]:
        assert isinstance(batch, CloningBatch)
        return cloning_losses(policy, batch, rows, shares, self.settings.chunks_per_pass)


def cloning_losses(
    policy: Policy, batch: CloningBatch, rows: slice, shares: Shares, chunks_per_pass: int
) -> Iterator[PartLoss]:
    """The mean cloning loss of the decisions of a mini-batch, in parts."""
    decided = batch.decided[rows]
    for part in parts_of(decided, shares, chunks_per_pass):
        places, weight = places_of(part, decided), float(part.sum())
        first, second = places.unbind(1)
        begin = rows.indices(len(batch))[0]
        seeds = [seed_for(batch.key, begin + row, place) for row, place in places.tolist()]
        loss = policy.cloning_loss(batch.observed(rows, places), batch.actions[rows][first, second], seeds)
        # A mean over the decisions of the part, which is this share of the mini-batch.
        yield PartLoss(loss.cpu() * (weight / float(decided.sum())), {}, weight)
