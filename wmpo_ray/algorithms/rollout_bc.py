"""Behaviour cloning of rollouts that succeeded, in imagination or in an environment.

    loss = E over decisions (o, a) of successful rollouts [ the policy's cloning loss at o, for the chunk a ]

With rollouts of the newest weights this is expert iteration, also called rejection-sampling fine-tuning (Anthony et al.
2017; Yuan et al. 2023, RFT). With rollouts of the base policy alone (`filter.max_staleness` of all updates, as the
recipe `bc-imagined` sets it) it separates what imagined data brings from what reinforcement does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from wmpo_ray.algorithms.base import OnlineAlgorithm, PartLoss
from wmpo_ray.algorithms.batching import Batch, GroupSlice, Shares, slices_of
from wmpo_ray.algorithms.filtered_bc import CloningBatch, cloning_losses
from wmpo_ray.config.run import Config, RolloutBcConfig
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import Group, Trajectories, Verdict


class RolloutBc(OnlineAlgorithm):
    """A batch holds the successes of its groups; `cloning/episodes` is how many they are.

    A decision is a whole chunk: actions of its tail that came after the success are cloned with it.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        assert isinstance(config.training, RolloutBcConfig)
        self.settings: RolloutBcConfig = config.training

    def admit(self, group: Group) -> Verdict:
        """A group without a success has nothing to clone."""
        if group.success.any():
            return Verdict.ADMIT
        return Verdict.UNIFORM if len(group.outcomes) == len(group.success) else Verdict.UNDECIDED

    def prepare(self, policy: Policy, groups: Sequence[GroupSlice], sources: Sequence[Trajectories]) -> CloningBatch:
        parts = slices_of(groups, sources)
        rows = [np.flatnonzero(group.success) for group in groups]
        finish = np.concatenate([group.finish_step[chosen] for group, chosen in zip(groups, rows, strict=True)])
        chosen = list(zip(parts, rows, strict=True))
        begins = np.arange(parts[0].actions.shape[1]) * policy.chunk_length
        states = [part.state[index] for part, index in chosen if part.state is not None]
        actions = torch.from_numpy(np.concatenate([part.actions[index] for part, index in chosen]))
        return CloningBatch(
            images={
                camera: np.concatenate([part.images[camera][index] for part, index in chosen])
                for camera in parts[0].images
            },
            state=np.concatenate(states) if states else None,
            instructions=tuple(part.instructions[i] for part, index in chosen for i in index),
            metrics={"cloning/episodes": float(len(finish))},
            actions=actions,
            decided=torch.from_numpy(begins[None] < finish[:, None]),
            # Newest weights act anew, so their actions tell one update from another.
            key=seed_for(self.config.seed, "cloning-noise", hashlib.sha256(actions.numpy().tobytes()).hexdigest()),
        )

    def losses(self, policy: Policy, batch: Batch, rows: slice, shares: Shares) -> Iterator[PartLoss]:
        assert isinstance(batch, CloningBatch)
        return cloning_losses(policy, batch, rows, shares, self.settings.chunks_per_pass)
